// Lightning attention over spans of any length (chunks.cuh).

// The blocks of a head read the same queries and keys: they run together, so that memory gives these once.
#if WGMMA && HEAD_DIM > 64
#define TOGETHER __cluster_dims__(HEAD_DIM / 64, 1, 1)
#else
#define TOGETHER
#endif

// Grid: blocks of 64 value channels, heads, spans.
extern "C" __global__ void __launch_bounds__(256, 1) TOGETHER lightning_prefill(
    const bf16* projected, i64 stride, const int4* spans, int rows, int slots, const float* powers, float* states,
    const bf16* tails, bf16* out
#if WGMMA
    ,
    const __grid_constant__ TensorMap map
#endif
) {
    extern __shared__ unsigned char dynamic_shared[];
    const int block = blockIdx.x, head = blockIdx.y, heads = gridDim.y;
    const u32 shared = (shared_address(dynamic_shared) + 1023) & ~1023u;
    float* table = reinterpret_cast<float*>(dynamic_shared + (shared - shared_address(dynamic_shared)) + TABLE);
    for (int n = threadIdx.x; n <= CHUNK; n += 256) table[n] = powers[head * POWERS + n];
    const void* map_address = nullptr;
#if WGMMA
    map_address = &map;
#endif
    begin_block(shared);
    wait_for_previous();
    let_next_start();
    const Span span = span_at(Spans{spans, rows, slots}, blockIdx.z);
    if (span.slot < 0) return;

    const i64 cache = i64(span.slot) * heads + head;
    if (threadIdx.x < 128) {
        const auto rows = [&](int channel) {
            return Rows{map_address, head * 3 * HEAD_DIM + channel, projected + head * 3 * HEAD_DIM + channel, stride};
        };
        const Operands operands = {rows(0), rows(HEAD_DIM), rows(2 * HEAD_DIM + block * 64)};
        const bf16* tail = tails + cache * 2 * CHUNK * HEAD_DIM;
        fetch_and_score<false, false>(shared, operands, span, walk_over<false>(span), tail, tail + CHUNK * HEAD_DIM + block * 64, table,
                                      Target{});
    } else {
        attend<false, true>(shared, span, walk_over<false>(span), block, states + cache * HEAD_DIM * HEAD_DIM, Handover{}, table,
                            table[CHUNK], false, out + head * HEAD_DIM + block * 64, i64(heads) * HEAD_DIM);
    }
}
