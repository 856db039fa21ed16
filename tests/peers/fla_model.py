"""A model of the M1 family in PyTorch, written for speed on one GPU.

Lightning attention is flash-linear-attention's chunked kernel, softmax attention PyTorch's own, experts are grouped
products over rows sorted by expert, and each layer is one graph of torch.compile. Without CUDA, lightning attention is
its definition, so that losses can be compared anywhere.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def decays(heads, layer, layers):
    """Of each head what a step multiplies the state by, as its logarithm."""

    def slopes(count):
        return [2 ** (-8 * (h + 1) / count) for h in range(count)]

    below = 2 ** math.floor(math.log2(heads))
    of_heads = slopes(below) + slopes(2 * below)[0::2][: heads - below]
    return torch.tensor([-slope * (1 - layer / (layers - 1) + 1e-5) for slope in of_heads], dtype=torch.float32)


def lightning_by_definition(q, k, v, decay):
    places = torch.arange(q.shape[1], device=q.device)
    distance = (places[:, None] - places[None, :]).float()
    weights = torch.where(distance >= 0, torch.exp(distance * decay[:, None, None]), 0.0)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * weights.to(q.dtype)
    return torch.einsum("bhts,bshd->bthd", scores, v)


@torch.library.custom_op("peer::lightning", mutates_args=())
def lightning(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    from fla.ops.simple_gla.chunk import RCP_LN2, chunk_simple_gla_fwd

    return chunk_simple_gla_fwd(q, k, v, g_gamma=decay * RCP_LN2, scale=1.0)[0].to(q.dtype)


@lightning.register_fake
def _(q, k, v, decay):
    return torch.empty_like(q)


@torch.library.custom_op("peer::lightning_backward", mutates_args=())
def lightning_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, do: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from fla.ops.simple_gla.chunk import RCP_LN2, chunk_simple_gla_bwd

    gamma = decay * RCP_LN2
    dq, dk, dv, _, _ = chunk_simple_gla_bwd(q, k, v, None, gamma, None, do.contiguous(), None, 1.0)
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


@lightning_backward.register_fake
def _(q, k, v, decay, do):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


lightning.register_autograd(
    lambda ctx, do: (*lightning_backward(*ctx.saved_tensors, do), None),
    setup_context=keep,
)


class Spread(torch.autograd.Function):
    """Rows for the experts: sorted row `i` is that of token `order[i] // choices`. Its gradient gathers, too."""

    @staticmethod
    def forward(context, x, order, inverse, choices):
        context.save_for_backward(inverse)
        context.choices = choices
        return x[order // choices]

    @staticmethod
    def backward(context, grad):
        (inverse,) = context.saved_tensors
        rows = grad[inverse].view(-1, context.choices, grad.shape[1])
        return rows.sum(1, dtype=torch.float32).to(grad.dtype), None, None, None


class Reorder(torch.autograd.Function):
    """Rows in another order, of which `inverse` is the inverse."""

    @staticmethod
    def forward(context, x, order, inverse):
        context.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(context, grad):
        (inverse,) = context.saved_tensors
        return grad[inverse], None, None


def rms_norm(x, weight, epsilon):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight.float()


def linear(x, weight):
    return F.linear(x, weight.to(x.dtype))


class Layer(nn.Module):
    def __init__(self, config, index, compute, stream):
        super().__init__()
        c = self.config = config
        self.compute, self.stream = compute, stream
        self.softmax = c["attn_type_list"][index] == 1
        hidden, self.heads, self.dim = c["hidden_size"], c["num_attention_heads"], c["head_dim"]
        width, self.kv_heads = self.heads * self.dim, c["num_key_value_heads"]
        kind = "full" if self.softmax else "linear"
        self.attention_scales = [c[f"layernorm_{kind}_attention_{x}"] for x in ("alpha", "beta")]
        self.mlp_scales = [c[f"layernorm_mlp_{x}"] for x in ("alpha", "beta")]

        def weight(*shape):
            return nn.Parameter(torch.empty(*shape))

        self.input_norm, self.post_norm = weight(hidden), weight(hidden)
        if self.softmax:
            # Queries, keys and values; one product.
            self.projection = weight(width + 2 * self.kv_heads * self.dim, hidden)
        else:
            # A query, a key and a value of each head, then all gates.
            self.projection = weight(4 * width, hidden)
            self.norm = weight(width)
            self.register_buffer("decay", decays(self.heads, index, c["num_hidden_layers"]))
        self.out = weight(hidden, width)
        experts, inner = c["num_local_experts"], c["intermediate_size"]
        self.router = weight(experts, hidden)
        self.gate_up, self.down = weight(experts, 2 * inner, hidden), weight(experts, hidden, inner)

    def lightning(self, h):
        width = self.heads * self.dim
        qkv, gate = linear(h, self.projection).split([3 * width, width], -1)
        q, k, v = (x.contiguous() for x in F.silu(qkv).unflatten(-1, (self.heads, 3, self.dim)).unbind(-2))
        attend = lightning if h.is_cuda else lightning_by_definition
        o = attend(q, k, v, self.decay).flatten(-2)
        o = torch.sigmoid(gate.float()) * rms_norm(o, self.norm, 1e-6)
        return linear(o.to(h.dtype), self.out)

    def attention(self, h, angles):
        width = self.heads * self.dim
        parts = linear(h, self.projection).split([width] + 2 * [self.kv_heads * self.dim], -1)
        q, k, v = (x.unflatten(-1, (-1, self.dim)).transpose(1, 2) for x in parts)
        rotary = self.config["rotary_dim"]
        cos, sin = angles

        def rope(x):
            a, b = x[..., :rotary].float().chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
            return torch.cat([turned, x[..., rotary:]], -1)

        o = F.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True, enable_gqa=True)
        return linear(o.transpose(1, 2).flatten(-2), self.out)

    def experts(self, h, exact):
        """Gives the output, the rows that each expert got and the sums of its probabilities."""
        experts, choices = self.config["num_local_experts"], self.config["num_experts_per_tok"]
        probabilities = F.linear(exact, self.router.float()).softmax(-1)
        weights, chosen = probabilities.topk(choices, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        chosen = chosen.flatten()
        order = chosen.argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        counts = (chosen[:, None] == torch.arange(experts, device=h.device)).sum(0)
        ends = counts.cumsum(0).to(torch.int32)
        x = Spread.apply(h, order, inverse, choices)
        gate_up, down = (w.to(h.dtype).transpose(1, 2) for w in (self.gate_up, self.down))
        gate, up = F.grouped_mm(x, gate_up, offs=ends).chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, down, offs=ends)
        y = Reorder.apply(y, inverse, order).view(-1, choices, h.shape[-1])
        y = (y * weights[..., None]).sum(1)
        return y.to(h.dtype), counts, probabilities.sum(0)

    def forward(self, x, cos, sin):
        epsilon = self.config["rms_norm_eps"]

        def residual(x, h, branch, scales):
            kept = h if self.config["postnorm"] else x.float()
            return (scales[0] * kept + scales[1] * branch.float()).to(self.stream)

        h = rms_norm(x, self.input_norm, epsilon)
        inner = h.to(self.compute)
        branch = self.attention(inner, (cos, sin)) if self.softmax else self.lightning(inner)
        x = residual(x, h, branch, self.attention_scales)
        h = rms_norm(x, self.post_norm, epsilon)
        branch, counts, sums = self.experts(h.to(self.compute).flatten(0, 1), h.flatten(0, 1))
        return residual(x, h, branch.view_as(h), self.mlp_scales), counts, sums


class Model(nn.Module):
    """`compute` is what products take, `stream` how the residual stream lies, `head` how the loss is computed: `plain`, a
    product and the cross-entropy in one graph, or `fused`, flash-linear-attention's, a block of rows at a time."""

    def __init__(self, config, compute=torch.bfloat16, stream=torch.bfloat16, head="plain", compiled=True):
        super().__init__()
        self.config, self.compute, self.stream, self.head_kind = config, compute, stream, head
        hidden, vocab = config["hidden_size"], config["vocab_size"]
        self.embedding = nn.Parameter(torch.empty(vocab, hidden))
        self.head = nn.Parameter(torch.empty(vocab, hidden))
        self.norm = nn.Parameter(torch.empty(hidden))
        self.layers = nn.ModuleList(
            Layer(config, i, compute, stream) for i in range(config["num_hidden_layers"])
        )
        compile = torch.compile if compiled else lambda f, **_: f
        # Layers of one kind share their code.
        self.run_layer = {
            kind: compile(lambda layer, *args: layer(*args), fullgraph=True, dynamic=False)
            for kind in (False, True)
        }
        self.run_head = compile(self.loss, dynamic=False)

    def loss(self, x, targets):
        h = rms_norm(x, self.norm, self.config["rms_norm_eps"]).to(self.compute).flatten(0, 1)
        if self.head_kind == "fused":
            from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

            weight = self.head.to(self.compute)
            return fused_linear_cross_entropy_loss(h, targets.flatten(), weight, accumulate_grad_in_fp32=False)
        return F.cross_entropy(linear(h, self.head).float(), targets.flatten())

    def angles(self, length, device):
        rotary = self.config["rotary_dim"]
        frequencies = self.config["rope_theta"] ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        return angles.cos().float().to(device), angles.sin().float().to(device)

    def forward(self, tokens):
        """The mean loss of the next tokens and the balance loss of all layers' routers, of tokens `[sequences, length]`."""
        if getattr(self, "known", None) != tokens.shape[1]:
            self.known, self.cos_sin = tokens.shape[1], self.angles(tokens.shape[1], tokens.device)
        x = F.embedding(tokens, self.embedding).to(self.stream)
        counts, sums = [], []
        for layer in self.layers:
            x, count, total = self.run_layer[layer.softmax](layer, x, *self.cos_sin)
            counts.append(count)
            sums.append(total)
        rows, experts = tokens.numel() * len(self.layers), self.config["num_local_experts"]
        shares, means = torch.stack(counts).sum(0) / rows, torch.stack(sums).sum(0) / rows
        # A position's target is the next token; the last one has none, and its row is computed for nothing.
        return self.run_head(x[:, :-1], tokens[:, 1:]), experts * (shares * means).sum()

    @torch.no_grad()
    def initialise(self):
        for parameter in self.parameters():
            parameter.fill_(1.0) if parameter.ndim == 1 else parameter.normal_(std=0.02)

    def round_weights(self):
        """Rounds what products take to `compute`; norms and routers stay f32."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.endswith("router"):
                parameter.data = parameter.data.to(self.compute)

    def load(self, directory):
        """Takes the weights of a checkpoint with the official names."""
        from safetensors.torch import load_file

        tensors = {}
        for path in Path(directory).glob("*.safetensors"):
            tensors.update(load_file(path))
        take = lambda name: tensors.pop(f"{name}.weight").float()
        values = {"embedding": take("model.embed_tokens"), "norm": take("model.norm"), "head": take("lm_head")}
        for i, layer in enumerate(self.layers):
            base, here = f"model.layers.{i}.", f"layers.{i}."
            parts = ["q_proj", "k_proj", "v_proj"] if layer.softmax else ["qkv_proj", "output_gate"]
            values[here + "projection"] = torch.cat([take(f"{base}self_attn.{part}") for part in parts])
            values[here + "out"] = take(base + ("self_attn.o_proj" if layer.softmax else "self_attn.out_proj"))
            if not layer.softmax:
                values[here + "norm"] = take(base + "self_attn.norm")
                values[here + "decay"] = layer.decay
            values[here + "input_norm"] = take(base + "input_layernorm")
            values[here + "post_norm"] = take(base + "post_attention_layernorm")
            values[here + "router"] = take(base + "block_sparse_moe.gate")
            expert = lambda e, part: take(f"{base}block_sparse_moe.experts.{e}.{part}")
            experts = range(self.config["num_local_experts"])
            values[here + "gate_up"] = torch.stack([torch.cat([expert(e, "w1"), expert(e, "w3")]) for e in experts])
            values[here + "down"] = torch.stack([expert(e, "w2") for e in experts])
        assert not tensors, f"left over: {sorted(tensors)}"
        self.load_state_dict(values)


def read_config(path):
    path = Path(path)
    return json.loads((path / "config.json" if path.is_dir() else path).read_text())


class Optimizer:
    """AdamW as `arges bench train` runs it: clipped to a norm of 1, on f32 weights. Where the model's weights are bf16,
    these are copies that the optimiser owns."""

    def __init__(self, model):
        self.parameters = list(model.parameters())
        self.low = [p for p in self.parameters if p.dtype != torch.float32]
        self.masters = [p.detach().float() for p in self.low]
        kept = [p for p in self.parameters if p.dtype == torch.float32]
        settings = dict(lr=1e-4, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.1)
        fused = self.parameters[0].is_cuda
        self.adamw = torch.optim.AdamW(kept + self.masters, fused=fused, **settings)
        for master in self.masters:
            master.grad = torch.empty_like(master)

    @torch.no_grad()
    def step(self):
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        if self.low:
            torch._foreach_copy_([m.grad for m in self.masters], [p.grad for p in self.low])
        self.adamw.step()
        if self.low:
            torch._foreach_copy_(self.low, self.masters)
        for parameter in self.parameters:
            parameter.grad = None


def training_step(model, optimizer, tokens):
    loss, balance = model(tokens)
    (loss + 0.001 * balance).backward()
    optimizer.step()
    return loss


def random_tokens(vocab):
    """The tokens of `arges bench train`: gives a function of the shape."""
    state = 1

    def take(sequences, length):
        nonlocal state
        tokens = []
        for _ in range(sequences * length):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            tokens.append((state >> 33) % vocab)
        return torch.tensor(tokens).view(sequences, length)

    return take
