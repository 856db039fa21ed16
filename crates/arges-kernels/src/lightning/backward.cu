// Gradients of lightning attention, in bf16 on tensor cores. With the decays w_ij of query i and key j, 0 for j > i,
//
//   dq_i = sum_j w_ij (do_i·v_j) k_j     dk_j = sum_i w_ij (v_j·do_i) q_i     dv_j = sum_i w_ij (k_j·q_i) do_i
//
// Each is lightning attention itself (chunks.cuh): dq of the output's gradients over values and keys; dk and dv, against
// time, of values over the output's gradients and queries, and of keys over queries and the output's gradients.

enum Gradient { QUERY, KEY, VALUE };

template <bool REVERSED>
__device__ __forceinline__ void gradients(
    u32 shared, const Operands& operands, Span span, const float* table, float chunk_decay, const Target& target
) {
    if (threadIdx.x < 128) {
        fetch_and_score<REVERSED, true>(shared, operands, span, nullptr, nullptr, table, target);
    } else {
        attend<REVERSED, false>(shared, span, 0, nullptr, table, chunk_decay, nullptr, 0);
    }
}

// Rows of `projected`, `before_silu` and `dprojected` are `stride` apart and begin with [heads, 3, HEAD_DIM]. Where
// `before_silu` is not null, the gradients are those by it. Grid: blocks of 64
// channels, heads times the three gradients, spans. The gradients of a head run together, as they read the same rows.
extern "C" __global__ void __launch_bounds__(256, 1) TOGETHER lightning_backward(
    const bf16* projected, const bf16* before_silu, i64 stride, const bf16* dout, const int4* spans, int rows,
    const float* powers, bf16* dprojected
#if WGMMA
    ,
    const __grid_constant__ TensorMap projected_map, const __grid_constant__ TensorMap dout_map
#endif
) {
    extern __shared__ unsigned char dynamic_shared[];
    const int block = blockIdx.x, head = blockIdx.y / 3, gradient = blockIdx.y % 3, heads = gridDim.y / 3;
    const u32 shared = (shared_address(dynamic_shared) + 1023) & ~1023u;
    float* table = reinterpret_cast<float*>(dynamic_shared + (shared - shared_address(dynamic_shared)) + TABLE);
    for (int n = threadIdx.x; n <= CHUNK; n += 256) {
        table[n] = powers[head * POWERS + (gradient == QUERY ? n : CHUNK - n)];
    }
    const float chunk_decay = powers[head * POWERS + CHUNK];
    const void *projected_address = nullptr, *dout_address = nullptr;
#if WGMMA
    projected_address = &projected_map;
    dout_address = &dout_map;
#endif
    begin_block(shared);
    wait_for_previous();
    let_next_start();
    const Span span = whole_span_at(spans, rows, blockIdx.z);
    if (span.rows == 0) return;

    const int first = head * 3 * HEAD_DIM;
    const auto input = [&](Gradient part, int channel) {
        const int at = first + part * HEAD_DIM + channel;
        return Rows{projected_address, at, projected + at, stride};
    };
    const auto output_gradients = [&](int channel) {
        const int at = head * HEAD_DIM + channel;
        return Rows{dout_address, at, dout + at, i64(heads) * HEAD_DIM};
    };
    const int own = first + gradient * HEAD_DIM + block * 64;
    const Target target = {dprojected + own, before_silu == nullptr ? nullptr : before_silu + own, stride};
    if (gradient == QUERY) {
        const Operands operands = {output_gradients(0), input(VALUE, 0), input(KEY, block * 64)};
        gradients<false>(shared, operands, span, table, chunk_decay, target);
    } else {
        const bool key = gradient == KEY;
        const Operands operands = {key ? input(VALUE, 0) : input(KEY, 0), key ? output_gradients(0) : input(QUERY, 0),
                                   key ? input(QUERY, block * 64) : output_gradients(block * 64)};
        gradients<true>(shared, operands, span, table, chunk_decay, target);
    }
}
