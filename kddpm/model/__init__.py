"""`DiffusionModel`, the Keras model of it all. Uses every wing above.

Begin with `diffusion_model`: `train_step` reads as Algorithm 1 of Ho et al. 2020.
"""
