"""Rooms with classes, depth and normals, and the zoo made of them."""
