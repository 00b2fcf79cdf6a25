"""Training of the focused view on what a store holds, and of the image tower on the videos' frames."""
