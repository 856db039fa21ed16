//! Tells the program which commit it was built from, and lists the files of the model that is part of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    commit();
    nano_files();
}

fn commit() {
    println!("cargo:rerun-if-changed=../../.git/HEAD");
    println!("cargo:rerun-if-changed=../../.git/refs/heads");
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--exclude=*"]).output();
    let commit = output.ok().filter(|output| output.status.success());
    let commit = commit.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    println!("cargo:rustc-env=ARGES_COMMIT={}", commit.trim());
}

/// Writes the expression that `src/nano.rs` includes: name and bytes of every file that a model consists of.
fn nano_files() {
    let variable = |name: &str| PathBuf::from(env::var_os(name).expect("cargo sets it for build scripts"));
    let directory = variable("CARGO_MANIFEST_DIR").join("../../models/nano");
    println!("cargo:rerun-if-changed={}", directory.display());
    let files = model_files(&directory).unwrap_or_else(|reason| {
        panic!(
            "models/nano, the model that becomes part of the program, is not there as it should be: {reason}. \
             It belongs to the repository: clone all of it. Another model may take its place: a directory with \
             config.json, tokenizer.json, tokenizer_config.json and safetensors"
        )
    });
    let item = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).expect("its files have plain names");
        format!("    ({name:?}, include_bytes!({:?})),\n", file.display().to_string())
    };
    let list: String = files.iter().map(item).collect();
    let out = variable("OUT_DIR").join("nano_files.rs");
    fs::write(&out, format!("&[\n{list}]\n")).expect("the output directory can be written");
}

/// The files that belong to the model, in order of name.
fn model_files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let unreadable = |error: io::Error| format!("{}: {error}", directory.display());
    let entries = fs::read_dir(directory).map_err(unreadable)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
    let mut files = paths.map_err(unreadable)?;
    files.retain(|file| belongs(file));
    files.sort();
    for needed in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        if !files.iter().any(|file| file.ends_with(needed)) {
            return Err(format!("{} has no {needed}", directory.display()));
        }
    }
    Ok(files)
}

/// Configuration, tokenizer and weights; not the model card.
fn belongs(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "json" || extension == "safetensors")
}
