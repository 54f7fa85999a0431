"""Twenty tasks of small pictures, and the zoos made of them: CLIP, OpenCLIP, ResNet."""
