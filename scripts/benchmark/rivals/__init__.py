"""Scripts that a user of other libraries would write. They run as processes of their own."""
