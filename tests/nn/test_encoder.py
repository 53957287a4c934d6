import pytest
import torch

from s2vfast import ops
from s2vfast.nn import Decoder, Encoder
from s2vfast.nn.block import BlockStack


def make_encoder(depth=3):
    torch.manual_seed(0)
    encoder = Encoder(joints=5, segments=4, segment_frames=2, channels=3, dim=16, heads=2, depth=depth, layer_scale=0.1)
    with torch.no_grad():
        for p in encoder.embedding.parameters():
            torch.nn.init.normal_(p)
    return encoder


def test_shapes_and_hidden_states():
    encoder = make_encoder()
    clips = torch.randn(2, 8, 5, 3)
    assert encoder(clips).shape == (2, 20, 16)
    visible = torch.tensor([[0, 3, 19], [1, 2, 7]], dtype=torch.int32)
    assert encoder(clips, visible).shape == (2, 3, 16)
    hidden = encoder.hidden(clips, last=2)
    assert [h.shape for h in hidden] == [(2, 20, 16)] * 2
    torch.testing.assert_close(encoder.norm(hidden[-1]), encoder(clips))
    torch.testing.assert_close(encoder.hidden(clips, last=3)[1:], hidden)


def test_hidden_tokens_do_not_depend_on_what_is_not_visible():
    encoder = make_encoder()
    clips = torch.randn(1, 8, 5, 3)
    visible = torch.tensor([[0, 1, 5]], dtype=torch.int32)
    other = clips.clone()
    other[:, :, 2:] += 1.0
    torch.testing.assert_close(encoder(clips, visible), encoder(other, visible))


@pytest.mark.parametrize("depth", [1, 2])
def test_decoding_masked_rows_alone_is_exact(depth):
    torch.manual_seed(0)
    decoder = Decoder(joints=5, segments=4, dim=16, heads=2, depth=depth, layer_scale=0.5)
    latent = torch.randn(2, 3, 16)
    tokens = torch.stack([torch.randperm(20), torch.randperm(20)]).to(torch.int32)
    visible, masked = tokens[:, :3], tokens[:, 3:]
    everything = decoder(latent, visible)
    expected = everything.gather(1, masked.long()[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(decoder(latent, visible, masked), expected)


@pytest.mark.parametrize("impl", ["reference", *(n for n in ("triton",) if not ops.availability("cpu")["mlp"][n])])
def test_without_layer_scale_a_block_adds_its_branches_as_they_are(impl):
    stacks = [BlockStack(2, 16, 2, 2.0, layer_scale) for layer_scale in (1.0, None)]
    plain = {name: p for name, p in stacks[0].state_dict().items() if "gamma" not in name}
    stacks[1].load_state_dict(plain)
    assert not [name for name, _ in stacks[1].named_parameters() if "gamma" in name]
    x = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for stack in stacks:
        with ops.use_impl(impl):
            y = stack(x)
            y.square().sum().backward()
        found.append((y, {name: p.grad for name, p in stack.named_parameters() if "gamma" not in name}))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-5, atol=1e-5)
