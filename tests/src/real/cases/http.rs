//! The appliance that serves files over HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use pv_drivers::pattern;
use scenarios::{OrStop, Outcome, demand};

use crate::real::guest::{Config, Guest};
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

const ADDRESS: [u8; 4] = [10, 0, 0, 2];
const SIZE: usize = 1 << 20;
const IMAGE_SIZE: usize = 4 << 20;

/// How long the appliance may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// 1 MiB from the guest's disk through its network to dom0.
pub fn serve(host: &Host) -> Outcome {
    leaves_nothing(host, || {
        let server = Server::create(host)?;
        host.step("GET /big.bin");
        server.check()?;
        let (status, body) = get("/index.html").or_fail("a second request")?;
        demand!(
            status == 200 && body == INDEX,
            "status {status}, body {body:?}"
        );
        let (status, _) = get("/missing").or_fail("a request for a missing file")?;
        demand!(status == 404, "status {status} for a missing file");
        server.shutdown()?;
        count_turns(host)
    })
}

/// A guest with one disk and one card is made in few turns of toolstack and store daemon: what each costs on a host of
/// many processors is waiting.
fn count_turns(host: &Host) -> Outcome {
    const MOST: (u64, u64) = (12, 2);
    if host.is_stock("xl") {
        return Ok(());
    }
    host.step("waits for the store");
    let config = host.scratch("http.cfg").display().to_string();
    let create = ["env", "XLRS_TIMES=1", "xlrs", "create", "-p", &config];
    let ran = host.run(&create)?.succeeded()?;
    host.toolstack(&["destroy", "http"])?;
    let told = ran.stderr.lines().find_map(|line| {
        let (waits, rest) = line.strip_prefix("store: ")?.split_once(" waits, ")?;
        let transactions = rest.strip_suffix(" transactions")?;
        Some((waits.parse().ok()?, transactions.parse().ok()?))
    });
    let (waits, transactions): (u64, u64) = told.or_fail(format!("waits in {ran}"))?;
    println!("{waits} waits, {transactions} transactions");
    demand!(
        waits <= MOST.0 && transactions <= MOST.1,
        "{waits} waits and {transactions} transactions for one creation; at most {MOST:?}"
    );
    Ok(())
}

const INDEX: &[u8] = b"<p>hello</p>\n";

/// A guest that serves two files.
pub struct Server<'a> {
    host: &'a Host,
    guest: Guest<'a>,
    content: Vec<u8>,
}

impl<'a> Server<'a> {
    /// Creates it with its files on its disk.
    pub fn create(host: &'a Host) -> Outcome<Server<'a>> {
        let kernel = host.lab_file("/lab/guests/httpd")?;
        let bridge = host.bridge()?;
        let mut content = vec![0; SIZE];
        pattern::fill(7, 0, &mut content);
        let mut archive = tar(&[("big.bin", content.as_slice()), ("index.html", INDEX)]);
        // Room for what the appliance writes behind the archive and reads back before it serves.
        archive.resize(IMAGE_SIZE, 0);
        let image = host.write_file("www.tar", archive)?;
        let config = Config::new("http", &kernel.display().to_string(), 32)
            .string("cmdline", "ip=10.0.0.2/24")
            .disk(&image)
            .vif(bridge);
        let guest = Guest::create(host, config)?;
        Ok(Server {
            host,
            guest,
            content,
        })
    }

    /// Demands that the large file comes as it is.
    pub fn check(&self) -> Outcome {
        let what = "the guest answers HTTP";
        let got = self
            .host
            .wait_for(what, START_TIMEOUT, || Ok(get("/big.bin").ok()));
        let (status, body) = got.map_err(|stop| self.guest.with_console(stop))?;
        demand!(status == 200, "status {status} for a file that is there");
        demand!(
            body == self.content,
            "{} bytes came that are not the {SIZE} of the file",
            body.len()
        );
        Ok(())
    }

    /// Shuts it down by the toolstack.
    pub fn shutdown(self) -> Outcome {
        self.guest.shutdown()
    }
}

/// One HTTP/1.0 request: status and body.
fn get(path: &str) -> Result<(u16, Vec<u8>), String> {
    let attempt = || -> std::io::Result<Vec<u8>> {
        let address = SocketAddr::from((ADDRESS, 80));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(
            stream,
            "GET {path} HTTP/1.0\r\nHost: guest\r\nConnection: close\r\n\r\n"
        )?;
        let mut bytes = Vec::new();
        stream.take(4 * SIZE as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = attempt().map_err(|error| error.to_string())?;
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or("no end of the header")?;
    let header = String::from_utf8_lossy(&bytes[..end]);
    let status = header
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok());
    Ok((
        status.ok_or(format!("no status in {header:?}"))?,
        bytes[end + 4..].to_vec(),
    ))
}

/// A ustar archive, as the appliance reads it from its disk.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        for (at, text) in [
            (100, "0000644\0"),
            (108, "0000000\0"),
            (116, "0000000\0"),
            (124, &format!("{:011o}\0", content.len())),
            (136, "00000000000\0"),
            (148, "        "),
            (156, "0"),
            (257, "ustar\x0000"),
        ] {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}
