"""Safe-CLIP on Ray: the library. Importing it imports no Ray."""
