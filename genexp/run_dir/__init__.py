"""Files of a run directory: names, formats, atomic writes."""
