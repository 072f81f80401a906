"""What several objectives share: contrasts in blocks, losses, queues, state per sample, heads, temperature."""
