// Causal attention of any spans with the tensor cores' products of a warp. Compiled for HEAD_DIM 64 or 128 and GROUP <=
// 64, besides what pages.cuh needs.
//
// A tile is 64 rows of one key-value head, 16 of each warp: tokens on a grid from the sequence start, times GROUP query
// heads. It passes over the pages from the sequence start; those behind a row's own change nothing of the row.

constexpr int THREADS = 128, TILE_ROWS = 64, TILE_TOKENS = TILE_ROWS / GROUP;
constexpr int HEAD_PAGE_BYTES = HEAD_PAGE * 2, STAGE_BYTES = 2 * HEAD_PAGE_BYTES;
constexpr int STEPS = HEAD_DIM / 16;
constexpr float NONE = -3.0e38f;

// out [rows, heads * HEAD_DIM], and lse [rows, heads] unless null. A block has one tile; the grid has as many as there are at most. `scale` is in units of
// log 2.
extern "C" __global__ void __launch_bounds__(THREADS)
prefill(const Span* spans, int span_count, int rows, const int* tables, int table_stride, int slots, int page_count,
        int kv_heads, const bf16* projected, i64 stride, const bf16* pages, float scale, bf16* out, float* lse) {
    extern __shared__ __align__(128) char shared[];
    Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    wait_for_previous();
    let_next_start();
    Tile tile = find_tile<TILE_TOKENS>(batch, kv_heads, blockIdx.x);
    Span span = tile.span;
    if (span.slot < 0) return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 base = shared_address(shared);
    auto load = [&](int stage, int index) {
        int page = page_at(batch, span, index);
        const char* from = reinterpret_cast<const char*>(pages + head_page(page, kv_heads, tile.kv_head));
        u32 to = base + stage * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < STAGE_BYTES / (THREADS * 16); i++) {
            int at = (i * THREADS + threadIdx.x) * 16;
            copy_async(to + at, from + at, true);
        }
        commit_copies();
    };
    load(0, 0);

    // A thread has two rows of each product, `lane / 4` of its warp's and 8 more.
    int place[2], head[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = warp * 16 + h * 8 + lane / 4;
        place[h] = tile.token + row / GROUP - span.position;
        head[h] = tile.kv_head * GROUP + row % GROUP;
        if (row >= TILE_TOKENS * GROUP || place[h] >= span.rows) place[h] = -1;
    }
    u32 query[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int channel = step * 16 + i / 2 * 8 + lane % 4 * 2;
            const bf16* from = projected + i64(span.first + place[i % 2]) * stride + head[i % 2] * HEAD_DIM + channel;
            query[step][i] = place[i % 2] >= 0 ? *reinterpret_cast<const u32*>(from) : 0;
        }
    }
    float most[2] = {NONE, NONE}, total[2] = {0.0f, 0.0f}, sum[PIECES][4];
#pragma unroll
    for (int i = 0; i < PIECES; i++) sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0.0f;

    int last = (min(tile.token + TILE_TOKENS, span.position + span.rows) - 1) / PAGE;
    for (int p = 0; p <= last; p++) {
        await_copies<0>();
        __syncthreads();
        if (p < last) load((p + 1) % 2, p + 1);
        u32 keys = base + p % 2 * STAGE_BYTES, values = keys + HEAD_PAGE_BYTES;
        float score[PAGE / 8][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int i = 0; i < PAGE / 8; i += 2) {
                u32 tiles[4];
                load_tiles(tiles, piece_address(keys, i * 8 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
                mma_bf16(score[i], query[step], tiles[0], tiles[1]);
                mma_bf16(score[i + 1], query[step], tiles[2], tiles[3]);
            }
        }
        bool masked = p * PAGE + PAGE - 1 > tile.token;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (masked) {
                int seen = span.position + place[h] - p * PAGE;
#pragma unroll
                for (int i = 0; i < PAGE / 4; i++) {
                    int key = i / 2 * 8 + lane % 4 * 2 + i % 2;
                    if (key > seen) score[i / 2][2 * h + i % 2] = __int_as_float(0xff800000);
                }
            }
            float now = most[h];
#pragma unroll
            for (int i = 0; i < PAGE / 8; i++) now = fmaxf(now, fmaxf(score[i][2 * h], score[i][2 * h + 1]));
            now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
            now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
            float shrink = exp2f((most[h] - now) * scale), origin = now * scale, part = 0.0f;
            most[h] = now;
#pragma unroll
            for (int i = 0; i < PAGE / 4; i++) {
                float& x = score[i / 2][2 * h + i % 2];
                x = exp2f(fmaf(x, scale, -origin));
                part += x;
            }
            total[h] = total[h] * shrink + part;
#pragma unroll
            for (int i = 0; i < PIECES; i++) sum[i][2 * h] *= shrink, sum[i][2 * h + 1] *= shrink;
        }
#pragma unroll
        for (int step = 0; step < PAGE / 16; step++) {
            const float(&low)[4] = score[2 * step], (&high)[4] = score[2 * step + 1];
            u32 weight[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                             pack_bf16(high[2], high[3])};
#pragma unroll
            for (int i = 0; i < PIECES; i += 2) {
                u32 tiles[4];
                load_tiles_transposed(
                    tiles, piece_address(values, step * 16 + lane / 8 % 2 * 8 + lane % 8, i + lane / 16));
                mma_bf16(sum[i], weight, tiles[0], tiles[1]);
                mma_bf16(sum[i + 1], weight, tiles[2], tiles[3]);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float all = total[h];
        all += __shfl_xor_sync(~0u, all, 1);
        all += __shfl_xor_sync(~0u, all, 2);
        if (place[h] < 0) continue;
        float part = 1.0f / all;
        i64 row = i64(span.first + place[h]) * kv_heads * GROUP + head[h];
        u32* to = reinterpret_cast<u32*>(out + row * HEAD_DIM + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < PIECES; i++) to[i * 4] = pack_bf16(sum[i][2 * h] * part, sum[i][2 * h + 1] * part);
        if (lse != nullptr && lane % 4 == 0) lse[row] = log_sum(most[h], scale, all);
    }
}
