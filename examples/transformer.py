"""A transformer in three processes: each block learns by itself to say a text's next character."""

from text_data import characters
from torch import nn

import pipeline


class NextCharacter(pipeline.LocalRule):
    static, output_layer = True, False  # the last block's scores are what the network predicts

    def __init__(self, place):
        super().__init__(place)
        self.head = nn.Linear(place.shape[-1], place.classes)

    def scores(self, h, batch):
        return self.head(h).transpose(1, 2)  # (n, characters, T)

    def loss(self, h, x, batch, generator):
        return nn.functional.cross_entropy(scores := self.scores(h, batch), batch.y), scores


class Block(nn.TransformerEncoderLayer):
    def __init__(self, width):
        super().__init__(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, x):  # (n, T, width): each place sees those before it
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return super().forward(x, src_mask=mask, is_causal=True)


def network(vocabulary, width=64, blocks=3):
    return nn.Sequential(nn.Embedding(vocabulary, width), *(Block(width) for _ in range(blocks)))


if __name__ == "__main__":
    data = characters()  # of this repository's documents; or characters("FILE.txt")
    net = network(len(data["classes"]))
    print(pipeline.fit(net, data, loss=NextCharacter, stages=3, epochs=3).history[-1])
