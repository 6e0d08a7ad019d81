"""Loss and gradient balancers: one file each. Never imports models."""
