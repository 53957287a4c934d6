"""Training: the step (`engine`), the loop around it (`loop`), and what is kept on the disk."""
