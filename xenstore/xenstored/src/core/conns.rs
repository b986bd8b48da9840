//! A map by connection, which is asked many times for each request.
//!
//! Connections' numbers count up and are nobody's to choose, so a multiplication spreads them over a table of places, and
//! what is looked for lies at its place or one of the next.

use super::ConnId;

/// Fewest places; a power of two, as every number of them.
const PLACES_MIN: usize = 16;

/// A map by connection, in no order.
#[derive(Clone, Debug)]
pub struct ConnMap<T> {
    all: Vec<(ConnId, T)>,
    /// Where in `all` the connection is that has this place or one before it, plus 1; 0 where none is. Half at most are
    /// taken.
    places: Vec<u32>,
}

impl<T> Default for ConnMap<T> {
    fn default() -> Self {
        ConnMap {
            all: Vec::new(),
            places: Vec::new(),
        }
    }
}

impl<T> ConnMap<T> {
    /// What there is for a connection.
    #[inline]
    pub fn get(&self, conn: &ConnId) -> Option<&T> {
        let (_, at) = self.find(*conn)?;
        self.all.get(at).map(|(_, value)| value)
    }

    /// What there is for a connection, to be changed.
    #[inline]
    pub fn get_mut(&mut self, conn: &ConnId) -> Option<&mut T> {
        let (_, at) = self.find(*conn)?;
        self.all.get_mut(at).map(|(_, value)| value)
    }

    /// Whether there is anything for a connection.
    #[inline]
    pub fn contains_key(&self, conn: &ConnId) -> bool {
        self.find(*conn).is_some()
    }

    /// Sets it; returns what there was before.
    pub fn insert(&mut self, conn: ConnId, value: T) -> Option<T> {
        if let Some(known) = self.get_mut(&conn) {
            return Some(std::mem::replace(known, value));
        }
        self.all.push((conn, value));
        if self.all.len() * 2 > self.places.len() {
            self.place_all(PLACES_MIN.max(self.places.len() * 2));
        } else {
            self.place(self.all.len() - 1);
        }
        None
    }

    /// What there is for a connection, made if there is nothing.
    pub fn or_default(&mut self, conn: ConnId) -> &mut T
    where
        T: Default,
    {
        let at = match self.find(conn) {
            Some((_, at)) => at,
            None => {
                self.insert(conn, T::default());
                self.all.len() - 1
            }
        };
        &mut self.all[at].1
    }

    /// Takes it out.
    pub fn remove(&mut self, conn: &ConnId) -> Option<T> {
        let (place, at) = self.find(*conn)?;
        // The last one comes to where it was.
        if let Some((last, _)) = self.all.last()
            && let Some((of_last, _)) = self.find(*last)
        {
            self.places[of_last] = at as u32 + 1;
        }
        let (_, value) = self.all.swap_remove(at);
        self.vacate(place);
        if self.all.len() * 8 < self.places.len() && self.places.len() > PLACES_MIN {
            self.place_all(self.places.len() / 2);
            self.all.shrink_to(self.places.len() / 2);
        }
        Some(value)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = (&ConnId, &T)> {
        self.all.iter().map(|(conn, value)| (conn, value))
    }

    /// All, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&ConnId, &mut T)> {
        self.all.iter_mut().map(|(conn, value)| (&*conn, value))
    }

    /// All connections.
    pub fn keys(&self) -> impl Iterator<Item = &ConnId> {
        self.iter().map(|(conn, _)| conn)
    }

    /// What there is for them.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }

    /// What there is for them, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.iter_mut().map(|(_, value)| value)
    }

    /// A connection's place, and where in `all` it is.
    #[inline]
    fn find(&self, conn: ConnId) -> Option<(usize, usize)> {
        let mut place = self.home(conn);
        loop {
            // Half of them are free at least, if there are any.
            let at = (*self.places.get(place)? as usize).checked_sub(1)?;
            if self.all.get(at)?.0 == conn {
                return Some((place, at));
            }
            place = (place + 1) & (self.places.len() - 1);
        }
    }

    /// Where a connection's place is, if it is free.
    #[inline]
    fn home(&self, ConnId(number): ConnId) -> usize {
        // The golden ratio of 2^64: near numbers come to lie far apart in the upper bits.
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize & self.places.len().wrapping_sub(1)
    }

    fn place_all(&mut self, places: usize) {
        self.places = vec![0; places];
        for at in 0..self.all.len() {
            self.place(at);
        }
    }

    fn place(&mut self, at: usize) {
        let mut place = self.home(self.all[at].0);
        while self.places[place] != 0 {
            place = (place + 1) & (self.places.len() - 1);
        }
        self.places[place] = at as u32 + 1;
    }

    /// Frees a place, and moves up those behind it that would not be found any more.
    fn vacate(&mut self, mut free: usize) {
        let mask = self.places.len() - 1;
        let mut next = free;
        loop {
            next = (next + 1) & mask;
            let at = self.places[next] as usize;
            if at == 0 {
                break;
            }
            let home = self.home(self.all[at - 1].0);
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(free) & mask {
                self.places[free] = self.places[next];
                free = next;
            }
        }
        self.places[free] = 0;
    }
}

/// What there is for a connection that is known to be there.
impl<T> std::ops::Index<&ConnId> for ConnMap<T> {
    type Output = T;

    fn index(&self, conn: &ConnId) -> &T {
        self.get(conn).expect("the connection is in the map")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    fn all<T: Copy>(map: &ConnMap<T>) -> BTreeMap<u64, T> {
        map.iter().map(|(conn, value)| (conn.0, *value)).collect()
    }

    proptest! {
        #[test]
        fn like_a_map(steps in proptest::collection::vec((any::<bool>(), 0..200u64, any::<u8>()), 0..600), stride in prop_oneof![Just(1u64), Just(1 << 20), any::<u64>()]) {
            let mut map = ConnMap::default();
            let mut model = BTreeMap::new();
            for (add, number, value) in steps {
                let number = number.wrapping_mul(stride);
                let conn = ConnId(number);
                if add {
                    prop_assert_eq!(map.insert(conn, value), model.insert(number, value));
                } else {
                    prop_assert_eq!(map.remove(&conn), model.remove(&number));
                }
                prop_assert_eq!(map.contains_key(&conn), add);
                prop_assert_eq!(map.len(), model.len());
            }
            prop_assert_eq!(all(&map), model.clone());
            for (number, value) in &model {
                prop_assert_eq!(map.get(&ConnId(*number)), Some(value));
                *map.or_default(ConnId(*number)) = 7;
            }
            prop_assert!(map.values().all(|value| *value == 7));
            prop_assert_eq!(map.or_default(ConnId(u64::MAX - 1)), &0);
        }
    }

    #[test]
    fn what_many_took_is_given_back() {
        let mut map = ConnMap::default();
        for number in 0..10_000 {
            map.insert(ConnId(number), number);
        }
        for number in 0..9_999 {
            assert_eq!(map.remove(&ConnId(number)), Some(number));
        }
        assert_eq!(all(&map), BTreeMap::from([(9_999, 9_999)]));
        assert!(map.places.len() <= PLACES_MIN && map.all.capacity() <= PLACES_MIN);
    }
}
