//! The sandbox's helper, for programs that are none themselves, such as tests. `arges` needs it not.

use std::process::ExitCode;

fn main() -> ExitCode {
    arges_tasks::sandbox::enter_if_helper().unwrap_or_else(|| {
        eprintln!("arges-sandbox is started by programs that run others in a sandbox");
        ExitCode::FAILURE
    })
}
