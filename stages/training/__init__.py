"""Training of the focused view on what a store holds."""
