//! The tiles in which the kernels make a product, and which of them suits how many rows.

use super::PARTS;

/// Rows and outputs of a tile, and how many tiles are copied ahead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    pub(super) rows: usize,
    /// Groups of 64 outputs of a warpgroup.
    pub(super) blocks: usize,
    /// Warpgroups that multiply.
    pub(super) warpgroups: usize,
    pub(super) stages: usize,
    /// Whether only the boxes of a tile are multiplied that hold rows.
    pub(super) partial: bool,
    /// Whether warpgroups take turns at whole tiles, so that one multiplies while another's results are written. Else
    /// they share every tile.
    pub(super) in_turn: bool,
}

impl Tiling {
    pub(super) const fn new(
        rows: usize,
        blocks: usize,
        warpgroups: usize,
        stages: usize,
        partial: bool,
    ) -> Self {
        Self { rows, blocks, warpgroups, stages, partial, in_turn: false }
    }

    const fn in_turn(self) -> Self {
        Self { in_turn: true, ..self }
    }

    pub(super) const fn outputs(self) -> usize {
        64 * self.blocks * if self.in_turn { 1 } else { self.warpgroups }
    }

    pub(super) const fn threads(self) -> usize {
        128 * (self.warpgroups + 1)
    }

    /// Tiles for so many rows and outputs.
    pub(super) const fn tiles(self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows) * outputs.div_ceil(self.outputs())
    }

    /// Rows that the copy engine takes at a time.
    pub(super) const fn row_box(self) -> usize {
        if self.rows.is_multiple_of(64) { 64 } else { self.rows }
    }

    /// Bytes of shared memory: the stages, room to align them, and pieces of 64 rows of results for each warpgroup that
    /// takes turns.
    pub(super) const fn shared(self) -> usize {
        let pieces = if self.in_turn { self.warpgroups * 64 * self.outputs() * 2 } else { 0 };
        self.stages * (self.outputs() + self.rows) * 128 + 1024 + pieces
    }

    /// Whether its results can only be rounded or gated: those of experts, as one matrix never takes it.
    pub(super) const fn for_experts(self) -> bool {
        self.partial && self.rows > MOST_OF_ONE
    }

    pub(super) fn defines(self) -> [(&'static str, i64); 8] {
        [
            ("ROWS", self.rows as i64),
            ("BLOCKS", self.blocks as i64),
            ("CONSUMERS", self.warpgroups as i64),
            ("STAGES", self.stages as i64),
            ("PARTIAL", self.partial as i64),
            ("IN_TURN", self.in_turn as i64),
            ("PARTS", PARTS as i64),
            ("FOR_EXPERTS", self.for_experts() as i64),
        ]
    }
}

/// Tilings for ever more rows. Few rows leave the shared memory to weights, which is what decoding waits for. The last two
/// are for hundreds of rows and more: all their tiles cost the same, so that blocks stay together and share what the cache
/// holds. With few steps to a tile it matters that the tensor cores do not wait while results are written, with many that
/// an instruction multiplies as many rows as it can, which needs the fewest bytes and the least power.
pub(super) const TILINGS: [Tiling; 8] = [
    Tiling::new(8, 1, 1, 24, true),
    Tiling::new(16, 1, 1, 22, true),
    Tiling::new(32, 1, 2, 10, true),
    Tiling::new(64, 1, 2, 8, true),
    Tiling::new(128, 1, 2, 6, true),
    Tiling::new(256, 1, 2, 4, true),
    Tiling::new(192, 2, 2, 4, false).in_turn(),
    Tiling::new(256, 1, 2, 4, false),
];
/// Their places.
pub(super) const LARGE: usize = TILINGS.len() - 2;
pub(super) const LONG: usize = TILINGS.len() - 1;
/// Values of a sum, and average rows of a matrix, from which on the last is taken.
const LONG_SUM: usize = 4096;
const LONG_ROWS: usize = 2048;
/// Rows at most of a tile of one matrix where tiles are partial.
pub(super) const MOST_OF_ONE: usize = 128;
/// Average rows of an expert from which on it is taken.
pub(super) const LARGE_ROWS: usize = 256;

/// A tile of `mma.cu`.
#[derive(Debug, Clone, Copy)]
pub(super) struct WarpTiling {
    pub(super) rows: usize,
    pub(super) outputs: usize,
    /// Warps along either side.
    pub(super) warps: [usize; 2],
    pub(super) stages: usize,
}

impl WarpTiling {
    const fn new(rows: usize, outputs: usize, warps: [usize; 2], stages: usize) -> Self {
        Self { rows, outputs, warps, stages }
    }

    /// Bytes of shared memory: stages of 64 values along `K`. All stay below the 99 KiB of the smallest cards.
    pub(super) const fn shared(self) -> usize {
        self.stages * (self.rows + self.outputs) * 128
    }

    pub(super) fn defines(self) -> [(&'static str, i64); 5] {
        [
            ("ROWS", self.rows as i64),
            ("OUTPUTS", self.outputs as i64),
            ("ROW_WARPS", self.warps[0] as i64),
            ("OUTPUT_WARPS", self.warps[1] as i64),
            ("STAGES", self.stages as i64),
        ]
    }
}

/// Tiles for ever more rows. With few, many small blocks keep weights on their way.
pub(super) const WARP_TILINGS: [WarpTiling; 3] = [
    WarpTiling::new(16, 64, [1, 4], 6),
    WarpTiling::new(64, 128, [2, 4], 3),
    WarpTiling::new(128, 128, [2, 4], 3),
];

/// What `mma.cu` is compiled for.
#[cfg(test)]
pub(in crate::matmul) fn warp_tiling_defines() -> impl Iterator<Item = [(&'static str, i64); 5]> {
    WARP_TILINGS.iter().map(|tiling| tiling.defines())
}

/// What `hopper.cu` is compiled for.
#[cfg(test)]
pub(in crate::matmul) fn tiling_defines() -> impl Iterator<Item = [(&'static str, i64); 8]> {
    TILINGS.iter().map(|tiling| tiling.defines())
}

/// The tiling for many rows, `rows` for each matrix, and sums of `k` values.
pub(super) fn for_many(rows: usize, k: usize) -> usize {
    if k >= LONG_SUM && rows >= LONG_ROWS { LONG } else { LARGE }
}

/// The smallest tiling that holds so many rows in one tile, or the one of most rows.
pub(super) fn fitting(rows: usize) -> usize {
    TILINGS[..LARGE].iter().position(|tiling| tiling.rows >= rows).unwrap_or(LARGE - 1)
}

/// Rows that a tile should hold for most experts to need one: three standard deviations above the average, as the
/// number of rows that an expert is chosen for spreads like a Poisson variable.
pub(super) fn expected_rows(rows: usize, experts: usize) -> usize {
    let average = rows as f64 / experts as f64;
    ((average + 3.0 * average.sqrt()).ceil() as usize).min(rows)
}
