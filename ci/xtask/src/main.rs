//! The one door to the project: `cargo xtask lab|demo|test|bench`.

fn main() {
    eprintln!("xtask: no command yet");
    std::process::exit(2);
}
