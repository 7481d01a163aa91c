"""From safe captions to quadruplets: captions, toxify, illustrate, judges, quadruplets, in this order."""
