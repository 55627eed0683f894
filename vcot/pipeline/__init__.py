"""The chain: a plan, a conductor, and the hands that start stages somewhere."""
