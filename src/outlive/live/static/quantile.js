/**
 * Estimate a quantile of a histogram, as Prometheus does: linear within a bucket.
 *
 * @param {number[]} bounds upper bounds of the buckets, but for the last
 * @param {number[]} counts in each bucket, one more than bounds
 * @param {number} share from 0 to 1
 * @returns {number | null} null where nothing was counted, Infinity above the last bound
 */
export function quantile(bounds, counts, share) {
  const rank = share * counts.reduce((sum, count) => sum + count, 0);
  if (counts.every((count) => count === 0)) return null;
  let below = 0;
  for (const [index, count] of counts.entries()) {
    if (count > 0 && below + count >= rank) {
      const upper = bounds[index];
      if (upper === undefined) return Infinity;
      const lower = bounds[index - 1] ?? 0;
      return lower + ((upper - lower) * (rank - below)) / count;
    }
    below += count;
  }
  return Infinity;
}

/**
 * Add up histograms with the same buckets.
 *
 * @param {number[][]} histograms
 * @returns {number[]}
 */
export function sum(histograms) {
  const [first = [], ...others] = histograms;
  return first.map((count, index) => others.reduce((all, other) => all + (other[index] ?? 0), count));
}
