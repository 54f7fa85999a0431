"""Small tasks of texts, and the zoos of RoBERTas made of them."""
