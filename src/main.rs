//! The program. What it does is in the library, so that tests and the demo run the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ecr_node_agent::main()
}
