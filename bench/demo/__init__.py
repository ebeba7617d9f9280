"""The built-in model: the conversations it learns from, its tokenizer, its training and its evaluation."""
