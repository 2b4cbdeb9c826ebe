"""What was learned locally goes on in plain PyTorch: the first blocks as fixed features."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import pipeline

X, y = load_digits(return_X_y=True)
X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)
even = y % 2 == 0

# five classes are learned without global backprop …
network = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5)]
data = (X[even], y[even] // 2)
pipeline.fit(network, data, epochs=15, batch_size=32, lr=1e-3, run_dir="evens", quiet=True)

# … and the two hidden blocks, as a module that knows nothing of this library, see the others
features = pipeline.load("evens", network=network, depth=2)
model = nn.Sequential(features.requires_grad_(False), nn.Linear(256, 5))
optimizer = torch.optim.Adam(model[1].parameters(), lr=1e-2)
odd, labels = X[~even], y[~even] // 2
for _ in range(200):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(odd), labels)
    loss.backward()
    optimizer.step()
print(f"error on the odd digits: {100 * (model(odd).argmax(1) != labels).float().mean():.1f} %")
