// The one panel whose component Grafana does not publish, drawn on a canvas in its colours.
import { dateTimeFormat, getValueFormat, formattedValueToString } from '@grafana/data';
import { interpolateOranges } from 'd3-scale-chromatic';
import React, { useEffect, useRef } from 'react';

const LEFT = 84;
const BOTTOM = 22;

// `series`: classic buckets (label le, counts a second below it); `dots`: exemplars.
export function Heatmap({ series, dots, unit, width, height, range, theme }) {
  const canvas = useRef(null);
  useEffect(() => {
    const ratio = window.devicePixelRatio;
    canvas.current.width = width * ratio;
    canvas.current.height = height * ratio;
    const pen = canvas.current.getContext('2d');
    pen.scale(ratio, ratio);
    draw(pen, { ...cells(series), dots, unit, width, height, range, theme });
  });
  return <canvas ref={canvas} style={{ width, height }} />;
}

// Counts within each bucket, of those buckets between the lowest and the highest that has any.
function cells(series) {
  const bound = ({ metric: { le } }) => (le === '+Inf' ? Infinity : Number(le));
  const sorted = [...series].sort((a, b) => (bound(a) < bound(b) ? -1 : 1));
  const times = sorted[0].values.map(([t]) => t);
  const counts = sorted.map(({ values }, i) =>
    values.map(([, v], j) => Math.max(0, Number(v) - (i ? Number(sorted[i - 1].values[j]?.[1] ?? 0) : 0)))
  );
  const used = counts.map((row) => row.some((v) => v > 1e-9));
  const first = Math.max(0, used.indexOf(true) - 1);
  const last = Math.min(used.length, used.lastIndexOf(true) + 2);
  return { times, counts: counts.slice(first, last), bounds: sorted.map(bound).slice(first, last) };
}

function draw(pen, { times, counts, bounds, dots, unit, width, height, range, theme }) {
  const [rows, plotW, plotH] = [counts.length, width - LEFT - 8, height - BOTTOM - 6];
  const most = Math.max(...counts.flat());
  const x = (t) => LEFT + ((t - range.from) / (range.to - range.from)) * plotW;
  const y = (row) => 6 + plotH - (row / rows) * plotH;
  const step = times[1] - times[0];
  counts.forEach((row, i) =>
    row.forEach((count, j) => {
      if (count > 1e-9) {
        pen.fillStyle = interpolateOranges(0.15 + 0.85 * Math.sqrt(count / most));
        const cellW = (step / (range.to - range.from)) * plotW;
        pen.fillRect(x(times[j]) - cellW, y(i + 1) + 0.5, cellW + 0.3, plotH / rows - 1);
      }
    })
  );
  pen.fillStyle = '#5794F2';
  dots.forEach(({ timestamp, value }) => {
    const row = bounds.findIndex((bound) => value <= bound);
    pen.fillRect(x(timestamp) - 2, y(row + 0.5) - 2, 5, 5);
  });
  pen.fillStyle = theme.colors.text.secondary;
  pen.font = `12px ${theme.typography.fontFamily}`;
  const format = (v) => formattedValueToString(getValueFormat(unit)(v));
  pen.textAlign = 'right';
  const every = Math.ceil(rows / (plotH / 24));
  bounds.forEach((bound, i) => i % every === 0 && Number.isFinite(bound) && pen.fillText(format(bound), LEFT - 6, y(i + 1) + 4));
  pen.textAlign = 'center';
  const days = range.to - range.from > 2 * 86400;
  for (let i = 1; i < 6; i++) {
    const t = range.from + ((range.to - range.from) * i) / 6;
    pen.fillText(dateTimeFormat(t * 1000, { format: days ? 'MM/DD HH:mm' : 'HH:mm', timeZone: 'utc' }), x(t), height - 6);
  }
}
