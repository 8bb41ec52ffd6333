/** Numbers as a person reads them. */

const whole = new Intl.NumberFormat("en");

/** @param {number} number */
export const count = (number) => whole.format(number);

/**
 * A duration with as many digits as matter.
 *
 * @param {number | null} seconds null where there is none
 */
export function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 0.0995) return `${round(seconds * 1000, seconds < 0.00995 ? 1 : 0)} ms`;
  if (seconds < 0.9995) return `${round(seconds * 1000, 0)} ms`;
  if (seconds < 99.95) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)} s`;
  if (seconds < 5940) return `${round(seconds / 60, 0)} min`;
  return `${round(seconds / 3600, 0)} h`;
}

/**
 * A share in percent, never rounded up to all or down to nothing.
 *
 * @param {number | null} share from 0 to 1 and beyond; null where there is none
 * @param {number} [digits]
 */
export function percent(share, digits = 0) {
  if (share === null) return "–";
  const step = 10 ** -digits;
  const shown = share * 100;
  if (share < 1 && shown > 100 - step) return `${(Math.floor(shown / step) * step).toFixed(digits)} %`;
  if (share > 0 && shown < step) return `< ${step.toFixed(digits)} %`;
  return `${shown.toFixed(digits)} %`;
}

/**
 * The time of day.
 *
 * @param {number} at in seconds since the epoch
 */
export const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

/** @param {number} number @param {number} digits */
const round = (number, digits) => String(Number(number.toFixed(digits)));
