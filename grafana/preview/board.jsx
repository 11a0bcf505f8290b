// A whole board, laid out as Grafana lays it out. The page that loads this gives `window.show` the
// board's JSON and the answers to its queries; `window.shown` is true once all is drawn.
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import { createTheme, dateTimeFormat } from '@grafana/data';
import { GlobalStyles, PanelChrome, PanelContextProvider, ThemeContext } from '@grafana/ui';
import React from 'react';
import { createRoot } from 'react-dom/client';

import { framesOf } from './frames';
import { loaded, Panel } from './panels';

const theme = createTheme({ colors: { mode: 'dark' } });
const [COLUMNS, ROW, GAP, EDGE, HEAD] = [24, 30, 8, 16, 56];

window.show = async ({ board, answers, exemplars, range, width }) => {
  // Figures are sized by measuring their text, so the font must be there first.
  await Promise.all(['400 14px Inter', '500 14px Inter'].map((font) => document.fonts.load(font)));
  const panels = await Promise.all(
    board.panels.map(async (raw) => {
      if (raw.type === 'row') {
        return { panel: raw };
      }
      const panel = loaded(raw);
      const own = answers[panel.id];
      return { panel, own, dots: exemplars[panel.id] ?? [], frames: await framesOf(panel, own, theme) };
    })
  );
  createRoot(document.getElementById('root')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <Board {...{ board, panels, range, width }} />
    </ThemeContext.Provider>
  );
  setTimeout(() => (window.shown = true), 1500);
};

function Board({ board, panels, range, width }) {
  const column = (width - 2 * EDGE + GAP) / COLUMNS;
  const bottom = Math.max(...board.panels.map(({ gridPos: { y, h } }) => y + h));
  const height = HEAD + bottom * (ROW + GAP) + EDGE;
  return (
    <div style={{ position: 'relative', width, height, background: theme.colors.background.canvas }}>
      <Head board={board} range={range} />
      {panels.map(({ panel, ...rest }) => {
        const { x, y, w, h } = panel.gridPos;
        const place = { left: EDGE + x * column, top: HEAD + y * (ROW + GAP) };
        const size = { width: w * column - GAP, height: h * (ROW + GAP) - GAP };
        return (
          <div key={panel.id} id={`panel-${panel.id}`} style={{ position: 'absolute', ...place, ...size }}>
            {panel.type === 'row' ? <RowTitle {...panel} /> : <One {...{ panel, range, ...rest, ...size }} />}
          </div>
        );
      })}
    </div>
  );
}

function Head({ board, range }) {
  const time = (t) => dateTimeFormat(t * 1000, { format: 'YYYY-MM-DD HH:mm', timeZone: 'utc' });
  const style = { position: 'absolute', left: EDGE, right: EDGE, top: 16, display: 'flex', gap: 16 };
  return (
    <div style={style}>
      <span style={{ fontSize: 18, fontWeight: 500 }}>{board.title}</span>
      <span style={{ marginLeft: 'auto', color: theme.colors.text.secondary }}>
        {time(range.from)} to {time(range.to)} UTC
      </span>
    </div>
  );
}

const RowTitle = ({ title }) => <div style={{ fontSize: 16, fontWeight: 500, paddingTop: 6 }}>{title}</div>;

function One({ panel, frames, own, dots, range, width, height }) {
  return (
    <PanelContextProvider value={{ eventsScope: 'preview', eventBus: quiet }}>
      <PanelChrome title={panel.title} width={width} height={height} padding={panel.type === 'table' ? 'none' : 'md'}>
        {(w, h) => <Panel {...{ panel, frames, range, theme }} answers={own} exemplars={dots} width={w} height={h} />}
      </PanelChrome>
    </PanelContextProvider>
  );
}

const silent = { subscribe: () => ({ unsubscribe() {} }), pipe: () => silent };
const quiet = { publish() {}, getStream: () => silent, subscribe: () => ({ unsubscribe() {} }), removeAllListeners() {}, newScopedBus: () => quiet };
