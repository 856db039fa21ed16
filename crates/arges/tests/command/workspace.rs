//! What the README's commands need of the workspace.

use std::process::Command;

use serde_json::Value;

#[test]
fn cargo_run_has_one_program_to_run() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let default = list(&metadata["workspace_default_members"]);
    let packages = list(&metadata["packages"]);
    let targets = packages.iter().filter(|package| default.contains(&package["id"]));
    let targets = targets.flat_map(|package| list(&package["targets"]));
    let programs: Vec<Value> = targets.filter(|target| target["kind"][0] == "bin").collect();
    let names: Vec<&Value> = programs.iter().map(|target| &target["name"]).collect();
    assert_eq!(names, ["arges"]);
}
