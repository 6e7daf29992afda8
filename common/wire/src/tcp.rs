//! How a TCP connection between agent and aggregator is kept, on both sides.

use std::{io, os::fd::AsFd, time::Duration};

use rustix::net::sockopt;

/// Silence after which the kernel asks whether the other side is there, and between its questions.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Questions without an answer after which it is gone.
const KEEP_ALIVE_PROBES: u32 = 3;
/// How long sent data may stay unacknowledged before the connection is given up, milliseconds.
const USER_TIMEOUT_MS: u32 = 60_000;

/// Sends at once what is written, and has the kernel notice within a minute when the other side is
/// gone without a word.
///
/// # Errors
///
/// When the kernel refuses an option.
pub fn tune(socket: &impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE)?;
    sockopt::set_tcp_keepcnt(socket, KEEP_ALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(socket, USER_TIMEOUT_MS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use rustix::net::sockopt;

    use super::{USER_TIMEOUT_MS, tune};

    #[test]
    fn a_tuned_connection_sends_at_once_and_notices_the_end_of_its_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        tune(&stream).unwrap();
        assert!(stream.nodelay().unwrap());
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), USER_TIMEOUT_MS);
    }
}
