"""What people look at: overlays, tables, one self-contained page."""
