//! Storage types of weights and caches.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How one number is stored, in a checkpoint or in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

/// A name that is none of the storage types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no storage type; expected f32, bf16 or f16")]
pub struct UnknownDType(String);

impl DType {
    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }

    /// The name used in `config.json` (`torch_dtype`, or `dtype` since transformers 5).
    pub const fn torch_name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::Bf16 => "bfloat16",
            DType::F16 => "float16",
        }
    }

    /// The storage type of that `torch_dtype`, if it is one of ours.
    pub fn from_torch_name(name: &str) -> Option<DType> {
        [DType::F32, DType::Bf16, DType::F16]
            .into_iter()
            .find(|dtype| name.strip_prefix("torch.").unwrap_or(name) == dtype.torch_name())
    }

    /// The same type in safetensors' terms.
    pub(crate) fn to_safetensors(self) -> safetensors::Dtype {
        match self {
            DType::F32 => safetensors::Dtype::F32,
            DType::Bf16 => safetensors::Dtype::BF16,
            DType::F16 => safetensors::Dtype::F16,
        }
    }

    /// The storage type of a tensor in a file, if it is one of ours.
    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<DType> {
        [DType::F32, DType::Bf16, DType::F16].into_iter().find(|own| own.to_safetensors() == dtype)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        })
    }
}

impl FromStr for DType {
    type Err = UnknownDType;

    /// Accepts the short names of this project and those of torch.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "f32" | "fp32" => Ok(DType::F32),
            "bf16" => Ok(DType::Bf16),
            "f16" | "fp16" => Ok(DType::F16),
            _ => DType::from_torch_name(name).ok_or_else(|| UnknownDType(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_type_parses_back_to_it() {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            assert_eq!(dtype.torch_name().parse(), Ok(dtype));
            assert_eq!(DType::from_safetensors(dtype.to_safetensors()), Some(dtype));
        }
        assert_eq!("torch.bfloat16".parse(), Ok(DType::Bf16));
        assert!("int8".parse::<DType>().unwrap_err().to_string().contains("int8"));
    }
}
