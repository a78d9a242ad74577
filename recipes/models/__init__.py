"""Networks: SiT, autoencoder, discriminator, encoders, LPIPS."""
