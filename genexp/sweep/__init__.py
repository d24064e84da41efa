"""Many runs from one command: which jobs there are, where each stands, and who runs them."""
