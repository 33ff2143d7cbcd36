import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from skipnet_jax.interop.layouts import translate, variable_shapes
from skipnet_jax.models import create_model
from skipnet_jax.models.families import swin
from tests import quick
from tests.interop.test_timm_names import import_torchvision


def test_pairs_are_told_apart_by_their_offset():
    index = swin.position_index(7)
    assert index.shape == (49, 49)
    assert sorted(set(index.ravel())) == list(range(169))
    assert len(set(np.diag(index))) == 1
    assert index[0, 1] == index[7, 8] != index[1, 0]


@pytest.mark.parametrize(("height", "width"), [(14, 14), (21, 14)])
def test_masked_pairs_were_not_neighbours_before_the_shift(height, width):
    window, shift = 7, 3
    rows, columns = np.divmod(np.arange(height * width), width)
    rolled = np.roll(np.stack([rows, columns], -1).reshape(height, width, 2), (-shift, -shift), (0, 1))
    windows = rolled.reshape(height // window, window, width // window, window, 2).swapaxes(1, 2).reshape(-1, 49, 2)
    near = (np.abs(windows[:, :, None] - windows[:, None]) < window).all(-1)
    np.testing.assert_array_equal(swin.region_mask(height, width, window, shift), near)


def test_a_single_window_is_not_shifted():
    x = jax.random.normal(jax.random.key(0), (1, 5, 7, 32))
    layers = swin.layer_norm_gelu(1e-5, jnp.float32, 0)
    shifted, unshifted = (swin.AttentionOperation(32, 4, 7, shifted, layers) for shifted in (True, False))
    variables = unshifted.init(jax.random.key(1), x, train=False)
    np.testing.assert_array_equal(*(op.apply(variables, x, train=False) for op in (shifted, unshifted)))


def torchvision_name(path):
    """torchvision's name of one of our arrays: its Swin has the same structure, and pads and shifts at run time."""
    *modules, leaf = path[1:]
    leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    if not modules[0].startswith("blocks_"):
        place = {"stem/conv": "features.0.0", "stem/norm": "features.0.2", "head_norm": "norm", "classifier": "head"}
        return f"{place['/'.join(modules)]}.{leaf}"
    number, stage = int(modules[0].removeprefix("blocks_")), 0
    for count in (2, 2, 6, 2):
        if number < 2 * count:
            break
        number, stage = number - 2 * count, stage + 1
    if modules[1] == "shortcut":
        return f"features.{2 * stage}.{modules[2]}.{leaf}"
    if leaf == "attn_position_bias":
        return f"features.{2 * stage + 1}.{number // 2}.attn.relative_position_bias_table"
    layer = {"attn_norm": "norm1", "attn_qkv": "attn.qkv", "attn_proj": "attn.proj", "mlp_norm": "norm2"}
    layer |= {"mlp_fc1": "mlp.0", "mlp_fc2": "mlp.3"}
    return f"features.{2 * stage + 1}.{number // 2}.{layer[modules[2]]}.{leaf}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "size",  # maps of 25, 13, 7, 4 and of 65, 33, 17, 9 pixels
    [100, pytest.param(260, marks=pytest.mark.slow)],
)
def test_any_image_size_as_in_torchvision(size):
    torch, torchvision = import_torchvision()
    torch.manual_seed(0)
    peer = torchvision.models.swin_t(num_classes=10).eval()
    for name, parameter in peer.named_parameters():
        if name.endswith("bias_table"):
            torch.nn.init.normal_(parameter, std=0.5)
    shapes = variable_shapes("swin_tiny", 10)
    state = {key: value.numpy() for key, value in peer.state_dict().items()}
    arrays, problems = translate(state, {torchvision_name(path): path for path in shapes}, shapes)
    assert not problems
    variables = traverse_util.unflatten_dict({tuple(path): jnp.asarray(array) for path, array in arrays.items()})
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = peer(images).numpy()
    apply = quick.jit(functools.partial(create_model("swin_tiny", num_classes=10).apply, train=False))
    logits = apply(variables, jnp.asarray(images.numpy().transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
