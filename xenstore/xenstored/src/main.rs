//! The command `xenstored`.

fn main() {
    eprintln!("xenstored: nothing here yet");
    std::process::exit(2);
}
