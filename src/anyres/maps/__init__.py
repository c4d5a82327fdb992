"""What a model looks at: attention of every family by slow twins, gradients for any model, and Fourier spectra."""
