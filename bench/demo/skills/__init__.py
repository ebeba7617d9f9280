"""What the model can do. Every skill composes exchanges from a source of chance, held-out ones on demand."""
