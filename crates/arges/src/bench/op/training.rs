//! Forward and backward passes of single operations over one sequence.

use anyhow::Result;
use arges_kernels::device::cuda::{Activations, Buffer};
use arges_kernels::lightning::cuda::{BackwardInputs, DeviceCache, Inputs, LightningBackwardCuda};
use arges_kernels::lightning::{CHUNK, Shape};
use arges_kernels::matmul::Element;
use arges_kernels::rope::Frequencies;
use arges_kernels::rope::cuda::DeviceAngles;
use arges_kernels::softmax_attention::cuda::{DevicePages, SoftmaxBackwardCuda, SoftmaxCuda};
use arges_kernels::softmax_attention::{self, PAGE};
use serde_json::Value;

use super::{Bench, HEAD_DIM, HEADS, KV_HEADS, ROTARY_DIM};

impl Bench {
    /// Seconds of the forward pass, the backward pass and both; bytes and operations of the one and the other.
    fn training_case(&self, tokens: usize, seconds: [f64; 3], bytes: [f64; 2], flops: [f64; 2]) -> Value {
        let [forward, backward, both] = seconds;
        let mut case = self.case("training", tokens, both, bytes[0] + bytes[1], flops[0] + flops[1]);
        case["forward"] = self.case("forward", tokens, forward, bytes[0], flops[0]);
        case["backward"] = self.case("backward", tokens, backward, bytes[1], flops[1]);
        case
    }

    /// Of sequences of so many tokens each; the backward pass by its inputs, and through SiLU before them.
    pub(super) fn lightning_training(&self, sequences: usize, tokens: usize) -> Result<Value> {
        let (forward, decays) = self.lightning()?;
        let (heads, rows) = (self.heads, sequences * tokens);
        let shape = Shape { heads, head_dim: HEAD_DIM };
        let backward = LightningBackwardCuda::new(&self.cuda, shape, Element::Bf16)?;
        let (stride, width) = (4 * heads * HEAD_DIM, heads * HEAD_DIM);
        let projected = self.random(rows * stride)?;
        let before_silu = self.random(rows * stride)?;
        let dout = self.random(rows * width)?;
        let mut out = Activations::zeroed(&self.cuda, Element::Bf16, rows * width)?;
        let mut dprojected = Activations::zeroed(&self.cuda, Element::Bf16, rows * stride)?;
        let mut cache = DeviceCache::new(&self.cuda, shape, Element::Bf16, sequences)?;
        let span = |slot: usize| [(slot * tokens) as i32, tokens as i32, 0, slot as i32];
        let spans = Buffer::from_slice(&self.cuda, &(0..sequences).map(span).collect::<Vec<_>>())?;
        let inputs = Inputs {
            decays: &decays,
            projected: &projected,
            stride,
            spans: &spans,
            first_span: 0,
            span_count: sequences,
        };
        let backward_inputs = BackwardInputs {
            decays: &decays,
            projected: &projected,
            before_silu: None,
            stride,
            spans: &spans,
            first_span: 0,
            span_count: sequences,
            dout: &dout,
        };
        let seconds = [
            self.time(|_| forward.prefill(&inputs, &mut cache, &mut out))?,
            self.time(|_| backward.gradients(&backward_inputs, &mut dprojected))?,
            self.time(|_| {
                forward.prefill(&inputs, &mut cache, &mut out)?;
                backward.gradients(&backward_inputs, &mut dprojected)
            })?,
        ];
        let through_silu = BackwardInputs { before_silu: Some(&before_silu), ..backward_inputs };
        let silu_seconds = self.time(|_| backward.gradients(&through_silu, &mut dprojected))?;
        let values = (rows * width) as f64;
        // q, k, v and o; then those and their gradients but for o.
        let bytes = [8.0 * values, 14.0 * values];
        let flops = values * (4 * CHUNK + 4 * HEAD_DIM) as f64;
        let mut case = self.training_case(tokens, seconds, bytes, [flops, 3.0 * flops]);
        let silu_bytes = bytes[1] + 6.0 * values;
        case["backward_through_silu"] =
            self.case("backward through SiLU", tokens, silu_seconds, silu_bytes, 3.0 * flops);
        Ok(case)
    }

    pub(super) fn softmax_training(&self, tokens: usize) -> Result<Value> {
        let shape = Self::softmax_shape();
        let forward = SoftmaxCuda::new(&self.cuda, shape, Element::Bf16)?;
        let mut backward = SoftmaxBackwardCuda::new(&self.cuda, shape, Element::Bf16, tokens)?;
        let (stride, width) = ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HEADS * HEAD_DIM);
        let page_count = tokens.div_ceil(PAGE);
        let mut pages = DevicePages::new(&self.cuda, shape, page_count, Element::Bf16)?;
        let tables = Buffer::from_slice(&self.cuda, &(0..page_count as i32).collect::<Vec<_>>())?;
        let spans = Buffer::from_slice(&self.cuda, &[[0, tokens as i32, 0, 0]])?;
        let mut projected = self.random(tokens * stride)?;
        let dout = self.random(tokens * width)?;
        let mut out = Activations::zeroed(&self.cuda, Element::Bf16, tokens * width)?;
        let mut lse = Buffer::zeroed(&self.cuda, tokens * HEADS)?;
        let mut dprojected = Activations::zeroed(&self.cuda, Element::Bf16, tokens * stride)?;
        let mut angles = DeviceAngles::new(&self.cuda, &Frequencies::new(1e7, ROTARY_DIM), tokens)?;
        angles.fill(&spans, 0, 1, tokens)?;
        let inputs = softmax_attention::cuda::Inputs {
            rows: tokens,
            spans: &spans,
            first_span: 0,
            span_count: 1,
            tables: &tables,
            table_stride: page_count,
        };
        forward.append(&mut projected, stride, &inputs, &angles, &mut pages)?;
        let forward_seconds = self.time(|_| {
            forward.prefill_for_training(&projected, stride, &inputs, &pages, &mut out, &mut lse)
        })?;
        let backward_seconds = self.time(|_| {
            let x = softmax_attention::cuda::BackwardInputs {
                projected: &projected,
                stride,
                inputs,
                angles: &angles,
                pages: &pages,
                out: &out,
                lse: &lse,
                dout: &dout,
            };
            backward.gradients(&x, &mut dprojected)
        })?;
        let (t, kv_width) = (tokens as f64, (2 * KV_HEADS * HEAD_DIM) as f64);
        let bytes =
            [2.0 * t * (2.0 * width as f64 + kv_width), 2.0 * t * (4.0 * width as f64 + 2.0 * kv_width)];
        // Two products forward; back, five that are needed, however often they are computed.
        let flops = 2.0 * width as f64 * t * (t + 1.0) / 2.0;
        let seconds = [forward_seconds, backward_seconds, forward_seconds + backward_seconds];
        Ok(self.training_case(tokens, seconds, bytes, [2.0 * flops, 5.0 * flops]))
    }
}
