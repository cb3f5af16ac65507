"""What is tuned: parameter-efficient designs, and how they are attached to a frozen transformer."""
