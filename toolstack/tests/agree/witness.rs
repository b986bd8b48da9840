//! Runs stock xl with `witness.c` in it, and asks it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

/// Stock xl, answering questions about texts.
pub struct Witness {
    child: Child,
    questions: ChildStdin,
    answers: ChildStdout,
}

/// What it says to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0, an errno, or xl's exit status.
    pub status: i32,
    /// What was found.
    pub text: String,
}

impl Witness {
    /// Starts it. Without Xen's packages or a C compiler that is a named skip, which is a failure with CI=true.
    pub fn start(test: &str) -> Option<Witness> {
        static LIBRARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let found = packages().and_then(|(headers, root)| {
            let library = LIBRARY.get_or_init(|| compile(&headers)).clone()?;
            Ok((library, root))
        });
        let (library, root) = match found {
            Ok(found) => found,
            Err(why) => {
                println!("SKIP {test}: {why}");
                let ci = std::env::var("CI").as_deref() == Ok("true");
                assert!(!ci, "skipped with CI=true: {why}");
                return None;
            }
        };
        Some(Witness::run(&library, &root))
    }

    fn run(library: &Path, root: &Path) -> Witness {
        let folders = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
        let folders = folders.map(|folder| root.join(folder).display().to_string());
        // Their own libc, so that any release of Debian will do here.
        let mut child = Command::new(root.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(folders.join(":"))
            .arg("--preload")
            .arg(library)
            .arg(root.join("usr/lib/xen-4.17/bin/xl"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("stock xl starts");
        let questions = child.stdin.take().unwrap();
        let answers = child.stdout.take().unwrap();
        Witness {
            child,
            questions,
            answers,
        }
    }

    /// Asks a question of a kind that `witness.c` lists.
    pub fn ask(&mut self, kind: u8, texts: &[&str]) -> Answer {
        let mut question = vec![kind];
        question.extend((texts.len() as u32).to_le_bytes());
        for text in texts {
            question.extend((text.len() as u32).to_le_bytes());
            question.extend(text.as_bytes());
        }
        let exchange = |this: &mut Witness| -> std::io::Result<Answer> {
            this.questions.write_all(&question)?;
            let mut head = [0; 8];
            this.answers.read_exact(&mut head)?;
            let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
            let mut text = vec![0; number(4) as usize];
            this.answers.read_exact(&mut text)?;
            Ok(Answer {
                status: number(0) as i32,
                text: String::from_utf8_lossy(&text).into_owned(),
            })
        };
        exchange(self).unwrap_or_else(|error| {
            let status = self.child.wait();
            panic!("stock xl ended ({status:?}, {error}) at {texts:?}")
        })
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the headers and the unpacked packages of xl are.
fn packages() -> Result<(PathBuf, PathBuf), String> {
    let folder = |name: &str, holds: &str| -> Result<PathBuf, String> {
        let dir = std::env::var_os(name).map(PathBuf::from);
        let dir = dir.ok_or(format!(
            "{name} is not set: run it by `cargo xtask test`, which fetches libxen-dev and xen-utils-4.17"
        ))?;
        assert!(
            dir.join(holds).exists(),
            "{name}: no {holds} in {}",
            dir.display()
        );
        Ok(dir)
    };
    let headers = folder("XLRS_XEN_HEADERS", "libxlutil.h")?;
    let root = folder("XLRS_STOCK_ROOT", "usr/lib/xen-4.17/bin/xl")?;
    Ok((headers, root))
}

fn compile(headers: &Path) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agree/witness.c");
    let library =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("agree-{}.so", std::process::id()));
    // No stack protector and no checked variants: their symbols may be younger than the stock libc.
    let flags = ["-O2", "-w", "-shared", "-fPIC", "-fno-stack-protector"];
    let out = Command::new("cc")
        .args(flags)
        .args(["-U_FORTIFY_SOURCE", "-I"])
        .arg(headers)
        .arg("-o")
        .args([&library, &source])
        .output()
        .map_err(|e| format!("no C compiler: cc: {e} (apt install gcc libc6-dev)"))?;
    let words = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "cc: {words}");
    Ok(library)
}
