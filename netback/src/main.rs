//! The command `netback`.

fn main() {
    eprintln!("netback: nothing here yet");
    std::process::exit(2);
}
