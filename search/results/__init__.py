"""What people read: queries, tables, the picture, the display of a running search."""
