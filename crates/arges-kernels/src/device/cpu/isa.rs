//! Which instructions this machine has, found at run time.

use std::fmt;
use std::str::FromStr;

/// Instruction sets, from the plainest to the widest; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Portable code.
    Plain,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with bf16 dot products.
    Avx512Bf16,
    /// AMX bf16 tiles.
    Amx,
}

/// An instruction set that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IsaError {
    /// The name is none of the known ones.
    #[error("unknown instruction set {0:?}: expected plain, avx2, avx512, avx512bf16 or amx")]
    Unknown(String),
    /// This machine lacks it.
    #[error("this CPU does not have {wanted}; the best it has is {best}")]
    Missing {
        /// What was asked for.
        wanted: Isa,
        /// What there is.
        best: Isa,
    },
}

impl Isa {
    /// The best instruction set of this machine.
    pub fn detect() -> Self {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(detect)
    }

    /// Every instruction set that this machine can run, plainest first.
    pub fn available() -> impl Iterator<Item = Self> {
        let best = Self::detect();
        [Self::Plain, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx]
            .into_iter()
            .filter(move |isa| *isa <= best && (*isa != Self::Avx512Bf16 || has_avx512_bf16()))
    }

    /// This instruction set if the machine has it.
    ///
    /// # Errors
    /// [`IsaError::Missing`] otherwise.
    pub fn require(self) -> Result<Self, IsaError> {
        if Self::available().any(|isa| isa == self) {
            Ok(self)
        } else {
            Err(IsaError::Missing { wanted: self, best: Self::detect() })
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512_bf16() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma")) {
        return Isa::Plain;
    }
    if !(has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")) {
        return Isa::Avx2;
    }
    if crate::matmul::amx::usable() {
        return Isa::Amx;
    }
    if has_avx512_bf16() { Isa::Avx512Bf16 } else { Isa::Avx512 }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Plain
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        })
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        match name {
            "plain" => Ok(Self::Plain),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            "avx512bf16" => Ok(Self::Avx512Bf16),
            "amx" => Ok(Self::Amx),
            _ => Err(IsaError::Unknown(name.to_owned())),
        }
    }
}
