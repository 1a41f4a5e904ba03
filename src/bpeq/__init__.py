"""bpeq: backpropagation and equilibrium propagation from one hand-written backward pass."""
