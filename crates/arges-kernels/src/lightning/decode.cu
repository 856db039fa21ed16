// Lightning attention for one row of each span, bound by the bytes of the state. A block takes some value channels of
// one head: it reads their part of the state once, into registers, with the unfinished chunk's keys and values, and
// writes the state only when the row completes the chunk.

#if ELEMENT_BYTES == 2
typedef bf16 element;
#else
typedef float element;
#endif

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
// Channels in 16 bytes.
constexpr int PIECE = 16 / ELEMENT_BYTES;
// Rows of the chunk that update the state at once.
constexpr int STRIP = 16;

// Sixteen bytes that nobody reads again soon.
__device__ __forceinline__ uint4 load_once(const void* from) {
    uint4 x;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(from));
    return x;
}

__device__ __forceinline__ void widen(uint4 x, float (&out)[PIECE]) {
    const u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if ELEMENT_BYTES == 2
        out[2 * i] = low_float(words[i]);
        out[2 * i + 1] = high_float(words[i]);
#else
        out[i] = __uint_as_float(words[i]);
#endif
    }
}

// Consecutive values, in vectors where there are enough.
template <typename T, int COUNT> __device__ __forceinline__ void load_floats(const T* from, float (&out)[COUNT]) {
    constexpr int VECTOR = 16 / sizeof(T);
    if constexpr (COUNT % VECTOR == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i += VECTOR) {
            const uint4 x = *reinterpret_cast<const uint4*>(from + i);
            const u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
            for (int w = 0; w < VECTOR; w++) {
                if constexpr (sizeof(T) == 4) {
                    out[i + w] = __uint_as_float(words[w]);
                } else {
                    out[i + w] = w % 2 == 0 ? low_float(words[w / 2]) : high_float(words[w / 2]);
                }
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++) out[i] = to_float(from[i]);
    }
}

// Sum over the lanes of a warp that are a multiple of `APART` away.
template <int APART> __device__ __forceinline__ float sum_over_groups(float x) {
#pragma unroll
    for (int lane = 16; lane >= APART; lane >>= 1) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

template <int COLUMNS>
__device__ __forceinline__ void decode(
    const element* projected, i64 stride, Spans spans, const float* powers, float* states, element* tails, element* out
) {
    // How threads lie over the state, over keys and over values: lanes along a row, and rows.
    constexpr int STATE_LANES = COLUMNS / 4;
    constexpr int STATE_ROWS = HEAD_DIM * STATE_LANES / THREADS;
    constexpr int KEY_LANES = HEAD_DIM / PIECE, KEY_GROUPS = THREADS / KEY_LANES;
    constexpr int KEY_ROWS = (CHUNK + KEY_GROUPS - 1) / KEY_GROUPS;
    constexpr int VALUE_LANES = COLUMNS / PIECE, VALUE_GROUPS = THREADS / VALUE_LANES;
    constexpr int VALUE_ROWS = (CHUNK + VALUE_GROUPS - 1) / VALUE_GROUPS;
    // As far as registers go.
    constexpr int UNROLLED = STATE_ROWS > 8 ? 1 : 4;
    static_assert(STATE_LANES <= 32 && KEY_LANES <= 32 && STATE_ROWS >= 1, "a row is within a warp");

    __shared__ float decays[CHUNK + 1];
    __shared__ float scores[CHUNK];
    __shared__ __align__(16) float query[HEAD_DIM];
    __shared__ float state_sums[WARPS][COLUMNS];
    __shared__ float value_sums[WARPS][COLUMNS];
    __shared__ __align__(16) float key_strip[STRIP][HEAD_DIM];
    __shared__ __align__(16) float value_strip[STRIP][COLUMNS];

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int column = blockIdx.x * COLUMNS, head = blockIdx.y, heads = gridDim.y;
    if (thread <= CHUNK) decays[thread] = powers[head * POWERS + thread];
    __syncthreads();
    wait_for_previous();
    let_next_start();
    const Span span = span_at(spans, blockIdx.z);
    if (span.slot < 0) return;
    const int place = span.position % CHUNK;
    const i64 cache = i64(span.slot) * heads + head;
    const element* row = projected + i64(span.first) * stride + head * 3 * HEAD_DIM;
    element* tail_keys = tails + cache * 2 * CHUNK * HEAD_DIM;
    element* tail_values = tail_keys + CHUNK * HEAD_DIM;

    // All that is read from memory, before the first use of any of it.
    const int state_row = thread / STATE_LANES * STATE_ROWS;
    float* state_at = states + (cache * HEAD_DIM + state_row) * HEAD_DIM + column + thread % STATE_LANES * 4;
    float state[STATE_ROWS][4];
#pragma unroll
    for (int r = 0; r < STATE_ROWS; r++) {
        const uint4 x = span.position < CHUNK ? uint4{0, 0, 0, 0} : load_once(state_at + r * HEAD_DIM);
        state[r][0] = __uint_as_float(x.x);
        state[r][1] = __uint_as_float(x.y);
        state[r][2] = __uint_as_float(x.z);
        state[r][3] = __uint_as_float(x.w);
    }
    const int key_piece = thread % KEY_LANES * PIECE, value_piece = column + thread % VALUE_LANES * PIECE;
    uint4 keys[KEY_ROWS], values[VALUE_ROWS];
    const auto load_chunk = [&]() {
#pragma unroll
        for (int r = 0; r < KEY_ROWS; r++) {
            const int j = r * KEY_GROUPS + thread / KEY_LANES;
            const element* from = j < place ? tail_keys + j * HEAD_DIM : row + HEAD_DIM;
            keys[r] = j <= place ? load_once(from + key_piece) : uint4{0, 0, 0, 0};
        }
#pragma unroll
        for (int r = 0; r < VALUE_ROWS; r++) {
            const int j = r * VALUE_GROUPS + thread / VALUE_LANES;
            const element* from = j < place ? tail_values + j * HEAD_DIM : row + 2 * HEAD_DIM;
            values[r] = j <= place ? load_once(from + value_piece) : uint4{0, 0, 0, 0};
        }
    };
    load_chunk();
    float query_piece[PIECE];
    widen(*reinterpret_cast<const uint4*>(row + key_piece), query_piece);
    if (thread < KEY_LANES) {
#pragma unroll
        for (int x = 0; x < PIECE; x++) query[key_piece + x] = query_piece[x];
    }

#pragma unroll
    for (int r = 0; r < KEY_ROWS; r++) {
        const int j = r * KEY_GROUPS + thread / KEY_LANES;
        float key[PIECE], sum = 0.0f;
        widen(keys[r], key);
#pragma unroll
        for (int x = 0; x < PIECE; x++) sum += query_piece[x] * key[x];
#pragma unroll
        for (int apart = KEY_LANES / 2; apart > 0; apart >>= 1) sum += __shfl_xor_sync(~0u, sum, apart);
        if (thread % KEY_LANES == 0 && j < CHUNK) scores[j] = j <= place ? sum * decays[place - j] : 0.0f;
        // Blocks divide the new row among them, as the others read the keys before it.
        if (j == place && place < CHUNK - 1 && key_piece >= column && key_piece < column + COLUMNS) {
            *reinterpret_cast<uint4*>(tail_keys + place * HEAD_DIM + key_piece) = keys[r];
        }
    }
    __syncthreads();

    float query_rows[STATE_ROWS], sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load_floats(query + state_row, query_rows);
#pragma unroll
    for (int r = 0; r < STATE_ROWS; r++) {
#pragma unroll
        for (int x = 0; x < 4; x++) sums[x] += query_rows[r] * state[r][x];
    }
#pragma unroll
    for (int x = 0; x < 4; x++) {
        const float sum = sum_over_groups<STATE_LANES>(sums[x]);
        if (lane < STATE_LANES) state_sums[warp][lane * 4 + x] = sum;
    }

    float weighted[PIECE];
#pragma unroll
    for (int x = 0; x < PIECE; x++) weighted[x] = 0.0f;
#pragma unroll
    for (int r = 0; r < VALUE_ROWS; r++) {
        const int j = r * VALUE_GROUPS + thread / VALUE_LANES;
        float value[PIECE];
        widen(values[r], value);
        const float score = j < CHUNK ? scores[j] : 0.0f;
#pragma unroll
        for (int x = 0; x < PIECE; x++) weighted[x] += score * value[x];
        if (j == place && place < CHUNK - 1) {
            *reinterpret_cast<uint4*>(tail_values + place * HEAD_DIM + value_piece) = values[r];
        }
    }
#pragma unroll
    for (int x = 0; x < PIECE; x++) {
        const float sum = sum_over_groups<VALUE_LANES>(weighted[x]);
        if (lane < VALUE_LANES) value_sums[warp][lane * PIECE + x] = sum;
    }
    __syncthreads();
    if (thread < COLUMNS) {
        float from_state = 0.0f, from_chunk = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) from_state += state_sums[w][thread];
#pragma unroll
        for (int w = 0; w < WARPS; w++) from_chunk += value_sums[w][thread];
        out[(i64(span.first) * heads + head) * HEAD_DIM + column + thread] =
            from_float<element>(decays[place + 1] * from_state + from_chunk);
    }

    if (place < CHUNK - 1) return;
    // Once in CHUNK rows; read again rather than kept in registers until here.
    load_chunk();
#pragma unroll
    for (int r = 0; r < STATE_ROWS; r++) {
#pragma unroll
        for (int x = 0; x < 4; x++) state[r][x] *= decays[CHUNK];
    }
    for (int first = 0; first < CHUNK; first += STRIP) {
#pragma unroll
        for (int r = 0; r < KEY_ROWS; r++) {
            const int j = r * KEY_GROUPS + thread / KEY_LANES;
            if (j < first || j >= first + STRIP) continue;
            float key[PIECE];
            widen(keys[r], key);
#pragma unroll
            for (int x = 0; x < PIECE; x++) key_strip[j - first][key_piece + x] = key[x] * decays[CHUNK - 1 - j];
        }
#pragma unroll
        for (int r = 0; r < VALUE_ROWS; r++) {
            const int j = r * VALUE_GROUPS + thread / VALUE_LANES;
            if (j < first || j >= first + STRIP) continue;
            float value[PIECE];
            widen(values[r], value);
#pragma unroll
            for (int x = 0; x < PIECE; x++) value_strip[j - first][value_piece - column + x] = value[x];
        }
        __syncthreads();
#pragma unroll UNROLLED
        for (int j = 0; j < STRIP; j++) {
            float value[4], key[STATE_ROWS];
            load_floats(&value_strip[j][thread % STATE_LANES * 4], value);
            load_floats(&key_strip[j][state_row], key);
#pragma unroll
            for (int r = 0; r < STATE_ROWS; r++) {
#pragma unroll
                for (int x = 0; x < 4; x++) state[r][x] += key[r] * value[x];
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < STATE_ROWS; r++) {
        *reinterpret_cast<float4*>(state_at + r * HEAD_DIM) =
            float4{state[r][0], state[r][1], state[r][2], state[r][3]};
    }
}

// Grid: blocks of value channels, heads, spans. For many spans, wide blocks, which read keys the fewest times; for
// few, narrow ones, which are more.
#define DECODE(name, columns, blocks)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, blocks) name(                                            \
        const element* projected, i64 stride, const int4* spans, int rows, int slots, const float* powers,         \
        float* states, element* tails, element* out                                                                \
    ) {                                                                                                            \
        decode<columns>(projected, stride, Spans{spans, rows, slots}, powers, states, tails, out);                 \
    }

DECODE(lightning_decode_wide, WIDE, (ELEMENT_BYTES == 2 && HEAD_DIM <= 128 ? 2 : 1))
DECODE(lightning_decode_narrow, WIDE / 4, 2)
