//! CONTROL, as users of the stock xenstore-control know it.

use xen_sys::Errno;
use xs_wire::Request;

use super::*;

fn ask(s: &mut Store, words: &str) -> Result<String, Errno> {
    let words = words.split(' ').map(str::as_bytes).collect();
    let body = s.ask(D0, 0, Request::Control(words))?;
    let text = body.strip_suffix(b"\0").expect("a terminated answer");
    Ok(String::from_utf8(text.to_vec()).unwrap())
}

#[test]
fn commands() {
    let mut s = Store::new();
    let g = s.guest(1);
    s.write(g, 0, "x", "12345").unwrap();
    for (words, answer) in [
        ("check", Ok("OK")),
        ("print hello", Ok("OK")),
        ("print", Err(Errno::EINVAL)),
        ("check this", Err(Errno::EINVAL)),
        ("nothing", Err(Errno::EINVAL)),
        ("quota set nodes 5", Ok("OK")),
        ("quota set nodes 0", Err(Errno::EINVAL)),
        ("quota set nodes -1", Err(Errno::EINVAL)),
        ("quota set nothing 5", Err(Errno::EINVAL)),
        ("quota-soft set memory 7", Ok("OK")),
        ("quota-soft set nodes 7", Err(Errno::EINVAL)),
        ("quota 9", Err(Errno::ENOENT)),
        ("quota x", Err(Errno::EINVAL)),
        ("quota max -x", Err(Errno::EINVAL)),
        ("stats 9", Err(Errno::ENOENT)),
        ("log x", Err(Errno::EINVAL)),
        (
            "quota-soft",
            Ok(
                "Quota settings:\nmemory           :        7 Memory per domain from which on the log tells of it\n",
            ),
        ),
    ] {
        let got = ask(&mut s, words);
        assert_eq!(got.as_deref(), answer.as_ref().copied(), "{words}");
    }
    assert_eq!(s.world.logged, ["control: hello"]);
    let help = ask(&mut s, "help").unwrap();
    for command in [
        "check",
        "log",
        "live-update",
        "logfile",
        "memreport",
        "print",
        "quota",
    ] {
        assert!(
            help.lines()
                .any(|line| line.split(' ').next() == Some(command)),
            "{command}"
        );
    }
    let quotas = ask(&mut s, "quota").unwrap();
    assert!(quotas.starts_with("Quota settings:\nnodes            :        5 Nodes per domain\n"));
    assert_eq!(quotas.lines().count(), 10);
    let guest = ask(&mut s, "quota 1").unwrap();
    assert!(guest.starts_with("Domain 1:\nnodes            :        2 (max        2)\n"));
    assert_eq!(guest.lines().count(), 10);
    s.rm(g, 0, "x").unwrap();
    let guest = ask(&mut s, "quota 1").unwrap();
    assert!(guest.contains("nodes            :        1 (max        2)\n"));
    let most = ask(&mut s, "quota max").unwrap();
    assert!(most.starts_with("Max. seen accounting values:\nnodes            :        2\n"));
    assert!(
        ask(&mut s, "quota max -r")
            .unwrap()
            .contains("nodes            :        0\n")
    );
    let guest = ask(&mut s, "quota 1").unwrap();
    assert!(guest.contains("nodes            :        1 (max        1)\n"));
}

#[test]
fn counters() {
    let mut s = Store::new();
    let g = s.guest(1);
    s.write(g, 0, "x", "12345").unwrap();
    s.read(g, 0, "x").unwrap();
    assert!(s.read(g, 0, "/tool").is_err());
    s.raw(g, 99, 0, b"");
    let tx = s.start(g);
    s.read(g, tx, "x").unwrap();
    s.write(g, tx, "y", "").unwrap();
    s.write(D0, 0, "/local/domain/1/x", "").unwrap();
    assert_eq!(s.commit(g, tx), Err(Errno::EAGAIN));
    assert_eq!(s.write(g, 0, "big", &"x".repeat(3000)), Err(Errno::ENOSPC));
    let stats = ask(&mut s, "stats 1").unwrap();
    let counts = "\"counts\":{\"requests\":{\"READ\":3,\"TRANSACTION_START\":1,\"TRANSACTION_END\":1,\"WRITE\":3,\"unknown\":1}";
    assert!(stats.contains(counts), "{stats}");
    assert!(
        stats.contains("\"errors\":4,\"conflicts\":1,\"refusals\":1}"),
        "{stats}"
    );
    assert!(stats.contains("\"held\":{\"nodes\":2,"), "{stats}");
    let all = ask(&mut s, "stats").unwrap();
    assert!(all.contains("\"domains\":1,"), "{all}");
    assert!(ask(&mut s, "stats 0").unwrap().contains("\"CONTROL\":2"));
    s.world.domains.remove(&1);
    s.core.domains_changed(&mut s.world);
    assert_eq!(ask(&mut s, "stats 1"), Err(Errno::ENOENT));
}
