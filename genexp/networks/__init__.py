"""Networks: modules that receive numbers, never a configuration."""
