// How chunks come into a block's shared memory, and gradients out of it, for chunks.cuh.

constexpr int KEY_PANELS = HEAD_DIM / 64;
constexpr int KEYS = KEY_PANELS * PANEL;
constexpr int VALUES = 2 * KEYS;
constexpr int STAGE = VALUES + PANEL;
constexpr int STAGES = WGMMA ? 4 : 3;
// How many chunks ahead of the first warpgroup's work they are fetched, and how many it is ahead of the second's at
// most.
constexpr int AHEAD = STAGES - 2;
constexpr int LEAD = 2;
constexpr int SCORES = STAGES * STAGE;
constexpr int OUTPUTS = SCORES + 2 * PANEL;
constexpr int ARRIVED = OUTPUTS + 2 * PANEL;
constexpr int TABLE = ARRIVED + STAGES * 8;

// Barriers between the warpgroups, two each, for even and odd chunks, and barriers within them.
enum Barrier { SCORED = 1, DONE = 3, LOADED = 5, WITHIN_FIRST = 7, WITHIN_SECOND = 8 };

// Keeps the compiler from moving the value's computation to where it is used, between products in flight.
__device__ __forceinline__ void compute_here(u32& x) { asm volatile("" : "+r"(x)); }
__device__ __forceinline__ void compute_here(float& x) { asm volatile("" : "+f"(x)); }

// Two values as sums of two bf16 values each, cut off after 16 bits.
__device__ __forceinline__ void split(float x, float y, u32& high, u32& low) {
    const u32 x_bits = __float_as_uint(x), y_bits = __float_as_uint(y);
    high = __byte_perm(x_bits, y_bits, 0x7632);
    const float x_rest = x - __uint_as_float(x_bits & 0xffff0000u);
    const float y_rest = y - __uint_as_float(y_bits & 0xffff0000u);
    low = __byte_perm(__float_as_uint(x_rest), __float_as_uint(y_rest), 0x7632);
}

// As the copy engine reads it.
struct __align__(64) TensorMap {
    u64 words[16];
};

// Rows of which the queries, keys or values of a head are some channels: for the copy engine, as a map and the first
// channel, and for threads.
struct Rows {
    const void* map;
    int channel;
    const bf16* at;
    i64 stride;
};

// What a block works on; of the values, its 64 channels.
struct Operands {
    Rows queries, keys, values;
};

#if WGMMA

// The barrier of a stage, at which its bytes arrive.
__device__ __forceinline__ u32 arrival(u32 shared, int n) { return shared + ARRIVED + n % STAGES * 8; }

__device__ __forceinline__ void await_chunk(u32 shared, int n) {
    asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again;}"
                 ::"r"(arrival(shared, n)), "r"(n / STAGES % 2)
                 : "memory");
}

// Copies a panel whose first channel and row are given.
__device__ __forceinline__ void copy_panel(u32 target, const void* map, int channel, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
                 "[%4];" ::"r"(target), "l"(map), "r"(channel), "r"(row), "r"(barrier)
                 : "memory");
}

#else

__device__ __forceinline__ void await_chunk(u32, int n) { meet(LOADED + n % 2, 256); }

#endif

#if WGMMA

// Copies queries, keys and a block's values of the 64 rows from `row` on.
__device__ __forceinline__ void copy_chunk(u32 stage, const Operands& x, int row, u32 barrier) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "n"(STAGE) : "memory");
#pragma unroll
    for (int p = 0; p < KEY_PANELS; p++) {
        copy_panel(stage + p * PANEL, x.queries.map, x.queries.channel + p * 64, row, barrier);
        copy_panel(stage + KEYS + p * PANEL, x.keys.map, x.keys.channel + p * 64, row, barrier);
    }
    copy_panel(stage + VALUES, x.values.map, x.values.channel, row, barrier);
}

#endif

// The chunks of a span, in the order of time or, to carry gradients, against it. There, what a key weighs decays with
// the distance to queries before it, and the table of decays is turned around: entry n has that of CHUNK - n tokens.
template <bool REVERSED> struct Walk {
    int first, count;

    __device__ __forceinline__ int chunk(int n) const { return REVERSED ? first - n : first + n; }

    // What key j weighs for query i of its chunk.
    static __device__ __forceinline__ float weight(const float* table, int i, int j) {
        const int distance = REVERSED ? j - i : i - j;
        return distance >= 0 ? table[REVERSED ? CHUNK - distance : distance] : 0.0f;
    }
};

template <bool REVERSED> __device__ __forceinline__ Walk<REVERSED> walk_over(Span span) {
    const int first = span.position / CHUNK, last = (span.position + span.rows - 1) / CHUNK;
    return {REVERSED ? last : first, last - first + 1};
}

// The part of a span that lies in one chunk.
struct Part {
    int row;    // of the batch, for place 0 of the chunk
    int begin;  // first place of the span
    int end;    // the one after its last

    __device__ __forceinline__ bool whole() const { return begin == 0 && end == CHUNK; }
};

__device__ __forceinline__ Part part_of(Span span, int chunk) {
    const int offset = chunk * CHUNK - span.position;
    return Part{span.first + offset, max(0, -offset), min(CHUNK, span.rows - offset)};
}

// Fetches `COLUMNS` channels of a chunk's rows: the span's from the batch, earlier ones from `tail`, zeros after.
template <int COLUMNS>
__device__ __forceinline__ void fetch_rows(u32 shared, const Rows& rows, Part part, const bf16* tail) {
    constexpr int PIECES = COLUMNS / 8;
    constexpr int STEP = 128 / PIECES;
    const int piece = threadIdx.x % PIECES, first = threadIdx.x / PIECES;
    // Rows of one thread lie a multiple of 8 apart, so that the swizzle is the same for all.
    shared += (piece / 8) * PANEL + first * 128 + ((piece % 8) ^ (first % 8)) * 16;
#pragma unroll 4
    for (int r = 0; r < CHUNK / STEP; r++) {
        const int place = first + r * STEP;
        const bool early = tail != nullptr && place < part.begin;
        const bool present = place < part.end && (early || place >= part.begin);
        const bf16* row = early ? tail + place * HEAD_DIM : rows.at + (i64(part.row) + place) * rows.stride;
        copy_async(shared + r * STEP * 128, present ? row + piece * 8 : rows.at, present);
    }
}

// Where the gradients of a block's channels go, in rows of a batch, and those channels before SiLU, unless null.
struct Target {
    bf16* out;
    const bf16* before_silu;
    i64 stride;
};

__device__ __forceinline__ float silu_derivative(float x) {
    float gate = 1.0f + __expf(-x);
    asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(gate));
    return fmaf(x * gate, 1.0f - gate, gate);
}

// Moves the gradients of a chunk from shared memory to where they go; a thread has 16 bytes of each 16th row.
struct Store {
    const Target& target;
    int4 before[4], x[4];

    // The parts may come long before they are used.
    __device__ __forceinline__ void load_before(Part part) {
        if (target.before_silu == nullptr) return;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int place = min(int(threadIdx.x) / 8 + 16 * r, part.end - 1);
            const bf16* from = target.before_silu + (i64(part.row) + place) * target.stride + threadIdx.x % 8 * 8;
            asm volatile("ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(before[r].x), "=r"(before[r].y), "=r"(before[r].z), "=r"(before[r].w)
                         : "l"(from));
        }
    }

    __device__ __forceinline__ void load(u32 outputs) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const u32 address = panel_piece(outputs, threadIdx.x / 8 + 16 * r, threadIdx.x % 8);
            asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(x[r].x), "=r"(x[r].y), "=r"(x[r].z), "=r"(x[r].w)
                         : "r"(address));
        }
    }

    static __device__ __forceinline__ int through_silu(int gradients, int before) {
        return pack_bf16(low_float(gradients) * silu_derivative(low_float(before)),
                         high_float(gradients) * silu_derivative(high_float(before)));
    }

    __device__ __forceinline__ void store(Part part) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int place = threadIdx.x / 8 + 16 * r;
            int4 y = x[r];
            if (target.before_silu != nullptr) {
                y.x = through_silu(y.x, before[r].x);
                y.y = through_silu(y.y, before[r].y);
                y.z = through_silu(y.z, before[r].z);
                y.w = through_silu(y.w, before[r].w);
            }
            bf16* to = target.out + (i64(part.row) + place) * target.stride + threadIdx.x % 8 * 8;
            if (place < part.end) *reinterpret_cast<int4*>(to) = y;
        }
    }
};
