"""A training step of DDPM in PyTorch: the noise, the loss, clipping, Adam and an average of the weights."""

import torch
import torch.nn.functional as F


def step_of(network, pixels, training, compiled, bfloat16):
    """Return a function that takes a step and returns its loss.

    Args:
        network: predicts the noise in x_t (B, C, H, W) at t (B,).
        pixels: the images, uint8 (N, C, H, W), from which batches are drawn.
        training: as in `torch_worker`.
        compiled: whether network and loss are compiled.
        bfloat16: whether to use autocast.
    """
    weights = list(network.parameters())
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, training["learning_rate"], fused=True)
    alpha_bars = torch.tensor(training["alpha_bars"], dtype=torch.float64)[:, None, None, None]
    signal, std = alpha_bars.sqrt().float(), (1 - alpha_bars).sqrt().float()
    batch, taken = training["batch_size"], 0

    def loss_of(x_0):
        t = torch.randint(len(alpha_bars), (batch,))
        noise = torch.randn_like(x_0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            eps = network(signal[t] * x_0 + std[t] * noise, t)
        return F.mse_loss(eps.float(), noise)

    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)

    def step():
        nonlocal taken
        x_0 = pixels[torch.randint(len(pixels), (batch,))].float() / 127.5 - 1
        loss = loss_of(x_0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, training["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        momentum = min(training["ema_momentum"], (1 + taken) / (10 + taken))
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - momentum)
        taken += 1
        return loss

    return step
